// Prints what the host-side policies choose, one line per line of standard input; tests/trt_plugins/test_policy.py
// asks.
//   linear M N VECTORS MULTIPROCESSORS              -> kernel
//   sm90 M N K C MULTIPROCESSORS                    -> kernel
//   quantize M K PER_VECTOR ALIGNED MULTIPROCESSORS -> kernel threads rows_per_block blocks
#include "mixq/linear/policy.h"

#include <iostream>
#include <string>

#include "mixq/linear/sm90_policy.h"
#include "mixq/quantize/policy.h"

int main() {
  using namespace graphopt::mixq;
  for (std::string kind; std::cin >> kind;) {
    int64_t m = 0, size = 0;
    int multiprocessors = 0;
    if (kind == "linear") {
      bool vectors = false;
      std::cin >> m >> size >> vectors >> multiprocessors;
      std::cout << static_cast<int>(pick_linear(m, size, vectors, multiprocessors)) << '\n';
    } else if (kind == "sm90") {
      int64_t k = 0, capacity = 0;
      std::cin >> m >> size >> k >> capacity >> multiprocessors;
      std::cout << static_cast<int>(pick_sm90(m, size, k, capacity, multiprocessors)) << '\n';
    } else {
      int per_vector = 0;
      bool aligned = false;
      std::cin >> m >> size >> per_vector >> aligned >> multiprocessors;
      QuantizePlan const plan = plan_quantize(m, size, per_vector, aligned, multiprocessors);
      std::cout << static_cast<int>(plan.kernel) << ' ' << plan.threads << ' ' << plan.rows_per_block << ' '
                << plan.blocks << '\n';
    }
  }
}
