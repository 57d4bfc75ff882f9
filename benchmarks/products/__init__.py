"""Parts of a training step or of sampling, timed alone: bounds for the whole. One twin file per backend.

A backend's file has the backend's name and defines the same functions as the others; it may import that backend and
its framework. Importing this package loads no framework.
"""
