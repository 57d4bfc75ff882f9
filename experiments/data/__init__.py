"""Data sets before training.

downloads    fetch published files with whichever framework is installed
preparation  find or download the files of a data set and write them as stores
inspection   a page about a data set: statistics, sampled images, near-duplicates
"""
