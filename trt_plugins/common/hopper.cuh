// One wrapper per Hopper instruction, but for the matrix products of wgmma.cuh: mbarriers, the bulk copy engine (TMA),
// clusters and register hand-over. sm_90a only. https://docs.nvidia.com/cuda/parallel-thread-execution
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/ptx.cuh"

namespace graphopt {

constexpr int kWarpgroup = 128;  // threads

// --- mbarrier -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Make initialized barriers visible to the copy engine and to the other blocks of the cluster.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrive at the barrier that lies at the same offset in block `rank` of the cluster. Orders no memory accesses of this
/// thread beyond its block: a release at cluster scope costs a fence of the whole GPU. Enough for reads by wgmma, which
/// are over when it has been waited for.
__device__ __forceinline__ void mbarrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// Arrive, and let the phase also wait for `bytes` of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
      "selp.b32 %0, 1, 0, complete;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// The same for what other blocks of the cluster have written, too.
__device__ __forceinline__ bool mbarrier_try_wait_cluster(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
      "selp.b32 %0, 1, 0, complete;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// Wait until `try_wait` returns true. A build with GRAPHOPT_WAIT_LIMIT_NS traps instead of hanging.
template <class TryWait>
__device__ __forceinline__ void wait_for(TryWait&& try_wait) {
#ifdef GRAPHOPT_WAIT_LIMIT_NS
  uint64_t start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  while (!try_wait()) {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (now - start > GRAPHOPT_WAIT_LIMIT_NS) __trap();
  }
#else
  while (!try_wait()) {
  }
#endif
}

/// Wait until the phase of `parity` has completed.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  wait_for([&] { return mbarrier_try_wait(barrier, parity); });
}

__device__ __forceinline__ void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity) {
  wait_for([&] { return mbarrier_try_wait_cluster(barrier, parity); });
}

// --- bulk copies ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_tensor_map(CUtensorMap const* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Load the box at (column, row) of a matrix; what lies outside it reads as zero. Bytes count on `barrier`.
__device__ __forceinline__ void tma_load(uint32_t shared, CUtensorMap const* map, uint32_t barrier, int column,
                                         int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

/// Bring the box into L2 only.
__device__ __forceinline__ void tma_prefetch(CUtensorMap const* map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row)
               : "memory");
}

/// Load the box into every block of the cluster whose bit is set, at the same offsets of its shared memory and barrier.
__device__ __forceinline__ void tma_load_multicast(uint32_t shared, CUtensorMap const* map, uint32_t barrier,
                                                   int column, int row, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%4, %5}], [%2], %3;" ::"r"(shared),
      "l"(map), "r"(barrier), "h"(blocks), "r"(column), "r"(row)
      : "memory");
}

/// Store a box to (column, row) of a matrix; what lies outside it is dropped. Joins the thread's open bulk group.
__device__ __forceinline__ void tma_store(CUtensorMap const* map, uint32_t shared, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(shared),
               "r"(column), "r"(row)
               : "memory");
}

/// Copy `bytes` contiguous bytes, a multiple of 16 between addresses that are multiples of 16.
__device__ __forceinline__ void bulk_load(uint32_t shared, void const* global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Wait until at most `kPending` of this thread's latest groups still read shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// Order this thread's stores to shared memory before later reads by the copy engine or the tensor cores.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Store 16 bytes into another block of the cluster, and count them on a barrier of that block. Both addresses are
/// those of address_at. No fence: who waits for the barrier by mbarrier_wait_cluster sees what was stored.
__device__ __forceinline__ void store_async(uint32_t shared, uint32_t barrier, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(shared),
      "r"(barrier), "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}

/// The address of `shared` of this block in block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_at(uint32_t shared, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared), "r"(rank));
  return remote;
}

// --- threads and registers ------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// The two halves of a barrier over all threads of the cluster that orders their memory accesses.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

/// The same without the ordering, which costs a fence of the whole GPU: a block may exit when its peers are through.
__device__ __forceinline__ void cluster_depart() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.aligned;" ::
          : "memory");
}

/// The address of four floats there, see address_at, to registers.
__device__ __forceinline__ void load_at(float (&value)[4], uint32_t address) {
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value[0]), "=f"(value[1]), "=f"(value[2]), "=f"(value[3])
               : "r"(address)
               : "memory");
}

/// Barrier `id` over kThreads threads.
template <int kThreads>
__device__ __forceinline__ void threads_sync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

/// Barrier `id` (0 is __syncthreads) over a warpgroup.
__device__ __forceinline__ void warpgroup_sync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kWarpgroup) : "memory");
}

/// The two halves of barrier `id` between two warpgroups, of which one arrives and goes on, and the other waits for it.
__device__ __forceinline__ void warpgroup_signal(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(2 * kWarpgroup) : "memory");
}

__device__ __forceinline__ void warpgroup_await(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(2 * kWarpgroup) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Store four 8 x 16-byte matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4(uint32_t shared, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}

/// The same of each matrix's transpose: lane l gives the address of column l % 8.
__device__ __forceinline__ void stmatrix_x4_transposed(uint32_t shared, uint32_t r0, uint32_t r1, uint32_t r2,
                                                       uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

}  // namespace graphopt
