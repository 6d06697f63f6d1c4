// The launches behind a plan.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "vq/linear/expand.h"
#include "vq/linear/params.h"
#include "vq/linear/plan.h"

namespace graphopt::vq {

Status current_device(Device* device);

/// `params` must have passed the checks of launch_linear, and `plan` be made for them.
Status launch_linear(LinearParams const& params, Plan const& plan, cudaStream_t stream);

template <class T>
Status launch_few_typed(LinearParams const& params, Plan const& plan, cudaStream_t stream);
extern template Status launch_few_typed<__half>(LinearParams const&, Plan const&, cudaStream_t);
extern template Status launch_few_typed<__nv_bfloat16>(LinearParams const&, Plan const&, cudaStream_t);

template <class T>
Status launch_sm90_typed(LinearParams const& params, Plan const& plan, cudaStream_t stream);
extern template Status launch_sm90_typed<__half>(LinearParams const&, Plan const&, cudaStream_t);
extern template Status launch_sm90_typed<__nv_bfloat16>(LinearParams const&, Plan const&, cudaStream_t);

template <class T>
Status launch_expand_typed(LinearParams const& params, Slab const& slab, Device const& device, cudaStream_t stream);
extern template Status launch_expand_typed<__half>(LinearParams const&, Slab const&, Device const&, cudaStream_t);
extern template Status launch_expand_typed<__nv_bfloat16>(LinearParams const&, Slab const&, Device const&,
                                                          cudaStream_t);

}  // namespace graphopt::vq
