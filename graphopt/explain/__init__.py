"""Why a kernel was chosen: plans of vector-quantized layers, and what each optimization is worth in them."""
