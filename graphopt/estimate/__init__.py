"""What M-ANT's accelerator and its rivals would do with a model, on paper: cycles, memory traffic, energy.

    workload.py     the products of a decoder, from an ONNX model or from sizes alone
    parameters.py   every number that the estimate assumes, each with its source (parameters.yaml)
    array.py        cycles of a product on a weight-stationary systolic array
    memory.py       tiles and the traffic of DRAM and buffers that they cause
    model.py        both, for all products of a phase on all arrays

docs/estimate.md says what the estimate leaves out and how far it is from the published numbers.
"""
