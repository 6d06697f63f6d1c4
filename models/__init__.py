"""Models to optimize, measure and test with: builders of any size, readers of real weights, and where to get them.

- `llama`, `bert`: ONNX builders, from real weights or seeded random ones (`weights`).
- `gguf_weights`, `safetensors_weights`, `tokenizer`: readers of what other projects publish.
- `assets`, `smollm2`: real files out of packages of the Python package index.

Nothing in the compiler imports this package.
"""
