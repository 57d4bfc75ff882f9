"""Speed and memory of Duet beside other libraries: the command `benchmarks.bench`, outside the library.

It imports the library and its commands' configuration; the library must not import it. `peers` holds the other
libraries' networks and training loops, and `products` the parts of a step measured alone, one file per framework.
"""
