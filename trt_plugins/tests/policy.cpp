// Prints what the host-side policies choose, one line per line of standard input; tests/trt_plugins/test_policy.py
// asks.
//   linear M N VECTORS MULTIPROCESSORS              -> kernel
//   sm90 M N K C MULTIPROCESSORS                    -> kernel
//   slab SIZE M N K MULTIPROCESSORS                 -> rows of a slab, and of the workspace's; microseconds with slabs of
//                                                     that many rows, 0 without rows, and without slabs
//   w4a8 M N VECTORS MULTIPROCESSORS                -> kernel
//   sm90_w4 M N K C MULTIPROCESSORS                 -> kernel
//   quantize M K C ELEMENT_SIZE INPUTS PARAMETERS ALIGNED MULTIPROCESSORS SHARED_KIB
//                                                  -> kernel threads rows_per_block blocks ahead shared_bytes
//   even_blocks BLOCKS SEGMENTS TILES              -> blocks
//   mant_mid M N K MULTIPROCESSORS                  -> tokens of a block, blocks that divide K, microseconds
//   hadamard PRODUCER M K CHANNELS BLOCK ELEMENT_SIZE ALIGNED SHARED_KIB
//                             -> in_registers units parts unit_threads block_units block_warps shared_bytes
//   fused PRODUCER M K ELEMENT_SIZE ALIGNED MULTIPROCESSORS
//                             -> kernel threads rows_per_block blocks
#include "mixq/linear/policy.h"

#include <cmath>
#include <iostream>
#include <string>

#include "attention/policy.h"
#include "fused/policy.h"
#include "mant/linear/sm90_expanded_policy.h"
#include "mant/linear/sm90_mid_tile.h"
#include "mixq/linear/sm90_policy.h"
#include "mixq/linear_w4a8/policy.h"
#include "mixq/linear_w4a8/sm90_policy.h"
#include "mixq/quantize/policy.h"
#include "vq/hadamard/policy.h"

int main() {
  using namespace graphopt::mixq;
  for (std::string kind; std::cin >> kind;) {
    int64_t m = 0, size = 0;
    int multiprocessors = 0;
    if (kind == "linear" || kind == "w4a8") {
      bool vectors = false;
      std::cin >> m >> size >> vectors >> multiprocessors;
      int const kernel = kind == "linear" ? static_cast<int>(pick_linear(m, size, vectors, multiprocessors))
                                          : static_cast<int>(pick_linear_w4a8(m, size, vectors, false, multiprocessors));
      std::cout << kernel << '\n';
    } else if (kind == "sm90" || kind == "sm90_w4") {
      int64_t k = 0, capacity = 0;
      std::cin >> m >> size >> k >> capacity >> multiprocessors;
      int const kernel = kind == "sm90" ? static_cast<int>(pick_sm90(m, size, k, capacity, multiprocessors))
                                        : static_cast<int>(pick_sm90_w4(m, size, k, capacity, multiprocessors));
      std::cout << kernel << '\n';
    } else if (kind == "slab") {
      namespace mant = graphopt::mant;
      int element = 0;
      int64_t n = 0, k = 0;
      std::cin >> element >> m >> n >> k >> multiprocessors;
      int64_t const rows = mant::pick_slab_rows(element, m, n, k, multiprocessors);
      double const expanded = rows > 0 ? mant::expanded_time(element, m, n, k, rows, multiprocessors) : 0.0;
      double const folded = mant::folded_time(element, m, n, k, multiprocessors);
      std::cout << rows << ' ' << mant::most_slab_rows(element, n, k) << ' ' << std::lround(expanded) << ' '
                << std::lround(folded) << '\n';
    } else if (kind == "even_blocks") {
      uint32_t blocks = 0, segments = 0, tiles = 0;
      std::cin >> blocks >> segments >> tiles;
      std::cout << graphopt::attention::even_blocks(blocks, segments, tiles) << '\n';
    } else if (kind == "mant_mid") {
      int64_t k = 0;
      std::cin >> m >> size >> k >> multiprocessors;
      auto const plan = graphopt::mant::plan_mid(m, size, k, multiprocessors);
      std::cout << plan.tokens << ' ' << plan.split << ' ' << std::lround(plan.time) << '\n';
    } else if (kind == "hadamard") {
      graphopt::vq::HadamardProblem problem{};
      int producer = 0;
      int64_t shared_kib = 0;
      std::cin >> producer >> problem.rows >> problem.k >> problem.channels >> problem.block >> problem.element_size >>
          problem.aligned >> shared_kib;
      problem.producer = static_cast<graphopt::Producer>(producer);
      auto const plan = graphopt::vq::plan_hadamard(problem, shared_kib * 1024);
      std::cout << plan.in_registers << ' ' << plan.units << ' ' << plan.parts << ' ' << plan.unit_threads << ' '
                << plan.block_units << ' ' << plan.block_warps << ' ' << plan.shared_bytes << '\n';
    } else if (kind == "fused") {
      graphopt::fused::FusedProblem problem{};
      int producer = 0;
      std::cin >> producer >> problem.rows >> problem.cols >> problem.element_size >> problem.aligned >> multiprocessors;
      problem.producer = static_cast<graphopt::Producer>(producer);
      auto const plan = graphopt::fused::plan_fused(problem, multiprocessors);
      std::cout << static_cast<int>(plan.kernel) << ' ' << plan.threads << ' ' << plan.rows_per_block << ' '
                << plan.blocks << '\n';
    } else {
      QuantizeProblem problem{};
      int64_t shared_kib = 0;
      std::cin >> problem.rows >> problem.cols >> problem.capacity >> problem.element_size >> problem.inputs >>
          problem.parameters >> problem.aligned >> multiprocessors >> shared_kib;
      int64_t const shared = shared_kib * 1024;
      QuantizePlan const plan = plan_quantize(problem, {multiprocessors, shared - 1024, shared});
      std::cout << static_cast<int>(plan.kernel) << ' ' << plan.threads << ' ' << plan.rows_per_block << ' '
                << plan.blocks << ' ' << plan.ahead << ' ' << plan.shared_bytes << '\n';
    }
  }
}
