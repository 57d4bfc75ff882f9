"""`duet diff`: where two implementations of a model first differ, and why.

Two processes record what a model computes, one operation at a time; this package compares the two recordings. It knows
no framework, and its modules import those above them only:

    vocabulary    the kinds of operations that a recording is made of, and their attributes
    call_stack    where an operation comes from: the layers that are called, and the author's line
    generators    the generators from which an author's code may draw
    translations  a table: how each operation of a framework is written in the vocabulary
    recording     what one side did: values, operations, parameters, gradients; to and from files
    operations/   each kind of operation in NumPy, and fused operations as a list of simple ones
    layouts       which arrays are the same numbers in another order
    relations     how one parameter is written in terms of another: parts, permutations, flips
    uses          what a parameter is used for, and what its axes mean
    places        which parameters stand at the same place of two graphs
    alignment     parameters that belong together; one side's weights written as the other's
    weights       which parameter of one side is which of the other
    runs          the network of a run of Duet as a side
    walk          one side run again on the other side's values, operation by operation
    causes/       the catalogue of causes: one change of an operation that makes the two sides agree
    comparison    the whole comparison, and its findings

`recording`, `vocabulary`, `call_stack`, `generators` and `translations` need NumPy alone, since they also run in the
interpreter of the model's author.
"""
