#include "common/tensor_map.h"

#include <cuda_runtime_api.h>
#include <cudaTypedefs.h>

namespace graphopt {
namespace {

/// The driver's encoder, asked for at run time so that the library loads where there is no driver; null if it has none.
PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  constexpr unsigned kSince = 12000;  // CUDA 12.0
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  cudaError_t const error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType map_type(DType type) {
  switch (type) {
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

CUtensorMapSwizzle swizzle_of(int32_t row_bytes) {
  switch (row_bytes) {
    case 128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    case 64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case 32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    default:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

}  // namespace

Status encode_tensor_map(CUtensorMap* map, void const* base, DType type, int64_t rows, int64_t cols,
                         int32_t box_rows, int32_t row_bytes, int64_t stride) {
  static PFN_cuTensorMapEncodeTiled_v12000 const encode = find_encoder();
  if (encode == nullptr) return cuda_status(cudaErrorNotSupported);
  size_t const size = element_size(type);
  cuuint64_t const dims[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  cuuint64_t const pitch[1] = {static_cast<cuuint64_t>(stride > 0 ? stride : cols) * size};
  cuuint32_t const box[2] = {static_cast<cuuint32_t>(row_bytes / size), static_cast<cuuint32_t>(box_rows)};
  cuuint32_t const steps[2] = {1, 1};
  CUtensorMapSwizzle const swizzle = swizzle_of(row_bytes);
  CUresult const result =
      encode(map, map_type(type), /*tensorRank=*/2, const_cast<void*>(base), dims, pitch, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  // The driver's codes and the runtime's agree in value.
  return cuda_status(static_cast<cudaError_t>(result));
}

}  // namespace graphopt
