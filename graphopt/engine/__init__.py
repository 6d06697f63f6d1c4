"""Everything that touches TensorRT: flavours, the plugin library, building plans and looking into them."""
