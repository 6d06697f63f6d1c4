// The order in which the Hopper linear kernels walk Y. Host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GRAPHOPT_HOST_DEVICE __host__ __device__
#else
#define GRAPHOPT_HOST_DEVICE
#endif

namespace graphopt {

/// Order of the clusters of tiles: `group` rows of them are walked column by column before the next rows, so that the
/// tiles in flight together form about a square and share most of X and W in L2.
struct Sm90Grid {
  int32_t down;    // clusters along M
  int32_t across;  // clusters along N
  int32_t group;

  struct Cell {
    int down;
    int across;
  };

  GRAPHOPT_HOST_DEVICE int clusters() const { return down * across; }

  GRAPHOPT_HOST_DEVICE Cell cell(int index) const {
    int const per_group = group * across;
    int const first = index / per_group * group;
    int const rows = down - first < group ? down - first : group;
    int const within = index % per_group;
    return {first + within % rows, within / rows};
  }
};

}  // namespace graphopt
