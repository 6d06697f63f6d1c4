// The formats that are compiled ahead of time.
#pragma once

#include "vq/linear/lattice.cuh"

namespace graphopt::vq {

template <class T>
using Gptvq2 = BookWeights<T, 4, 8, 1, /*kTiled=*/true, /*kCopies=*/16>;
template <class T>
using Aqlm2 = BookWeights<T, 8, 8, 2, /*kTiled=*/false, /*kCopies=*/8>;
template <class T>
using Aqlm3 = BookWeights<T, 8, 12, 2, /*kTiled=*/false, /*kCopies=*/1>;  // 128 KB: no room for another copy
template <class T>
using Quip4 = LatticeWeights<T, 2, /*kPairs=*/false>;

// What lanes look up by twos in the kernels of many tokens.
template <class T>
using Gptvq2Pairs = BookWeights<T, 4, 8, 1, true, 16, /*kByByte=*/true>;
template <class T>
using Aqlm2Pairs = BookWeights<T, 8, 8, 2, false, 8, /*kByByte=*/true>;
template <class T>
using Quip4Pairs = LatticeWeights<T, 2, /*kPairs=*/true>;

}  // namespace graphopt::vq
