// The lattice on an NVIDIA GPU: launches, and the sort and scan of CUB. What the threads do is in
// gpu_*_items.hpp, the order of the steps in gpu_*_driver.hpp.
#include <cuda_runtime.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <new>

#include "gpu_filter_driver.hpp"

namespace crfasrnn::gpu {
namespace {

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here; the next call starts clean
  if (code == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw DeviceError(std::string("CUDA failed with ") + cudaGetErrorName(code) + ": " + cudaGetErrorString(code));
}

constexpr int threads_per_block = 256;

// A thread per row and pack; x runs over the packs of a row, so that a warp moves whole rows.
template <class Item>
__global__ void __launch_bounds__(threads_per_block) for_each_kernel(std::size_t n_rows, Item item) {
  const std::size_t row = blockIdx.x * static_cast<std::size_t>(blockDim.y) + threadIdx.y;
  if (row < n_rows) item(row, static_cast<int>(threadIdx.x));
}

// Two lattices in one launch: the first blocks work on one, the rest on the other.
template <class Item>
__global__ void __launch_bounds__(threads_per_block)
    for_each_two_kernel(std::size_t n_first, Item first, unsigned first_blocks, std::size_t n_second, Item second) {
  const bool is_first = blockIdx.x < first_blocks;
  const std::size_t block = is_first ? blockIdx.x : blockIdx.x - first_blocks;
  const std::size_t row = block * blockDim.y + threadIdx.y;
  if (is_first) {
    if (row < n_first) first(row, static_cast<int>(threadIdx.x));
  } else {
    if (row < n_second) second(row, static_cast<int>(threadIdx.x));
  }
}

template <int Phase, class Item>
__device__ void run_phases(std::size_t block, const Item& item, typename Item::Local& local, float* scratch) {
  item.phase(Phase, block, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y), local, scratch);
  if constexpr (Phase + 1 < Item::n_phases) {
    __syncthreads();
    run_phases<Phase + 1>(block, item, local, scratch);
  }
}

template <class Item>
__global__ void __launch_bounds__(512) blocks_kernel(Item item) {
  extern __shared__ float4 shared[];
  typename Item::Local local;
  run_phases<0>(blockIdx.x, item, local, reinterpret_cast<float*>(shared));
}

template <class First, class Second>
__global__ void __launch_bounds__(512) blocks_two_kernel(First first, unsigned n_first, Second second) {
  extern __shared__ float4 shared[];
  float* scratch = reinterpret_cast<float*>(shared);
  if (blockIdx.x < n_first) {
    typename First::Local local;
    run_phases<0>(blockIdx.x, first, local, scratch);
  } else {
    typename Second::Local local;
    run_phases<0>(blockIdx.x - n_first, second, local, scratch);
  }
}

// Torch has a runtime of its own beside this static one, and has made the device current. What this one
// remembers may be out of date: it is told, always, and nothing is put back afterwards, since that
// would take torch's device away from it.
void make_current(int device) { check(cudaSetDevice(device)); }

struct Stream {
  cudaStream_t handle = nullptr;
  Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(handle); }
};

}  // namespace

class CudaDevice {
 public:
  explicit CudaDevice(const Where& where) : stream_(reinterpret_cast<cudaStream_t>(where.stream)) {
    make_current(where.device);
  }

  template <class Item>
  void for_each(std::size_t n_rows, int n_packs, const Item& item) {
    if (n_rows == 0) return;
    const dim3 block = block_of(n_packs);
    for_each_kernel<<<n_blocks(n_rows, block.y), block, 0, stream_>>>(n_rows, item);
    check(cudaGetLastError());
  }

  template <class Item>
  void for_each_two(std::size_t n_first, const Item& first, std::size_t n_second, const Item& second, int n_packs) {
    if (n_first == 0) return for_each(n_second, n_packs, second);
    if (n_second == 0) return for_each(n_first, n_packs, first);
    const dim3 block = block_of(n_packs);
    const unsigned first_blocks = n_blocks(n_first, block.y);
    const unsigned total = first_blocks + n_blocks(n_second, block.y);
    for_each_two_kernel<<<total, block, 0, stream_>>>(n_first, first, first_blocks, n_second, second);
    check(cudaGetLastError());
  }

  template <class Item>
  void blocks(std::size_t n, int n_x, int n_y, std::size_t n_scratch, const Item& item) {
    if (n == 0) return;
    const dim3 block(static_cast<unsigned>(n_x), static_cast<unsigned>(n_y));
    blocks_kernel<<<static_cast<unsigned>(n), block, n_scratch * sizeof(float), stream_>>>(item);
    check(cudaGetLastError());
  }

  template <class First, class Second>
  void blocks_two(std::size_t n_first, const First& first, std::size_t n_second, const Second& second, int n_x,
                  int n_y, std::size_t n_scratch) {
    if (n_first + n_second == 0) return;
    const dim3 block(static_cast<unsigned>(n_x), static_cast<unsigned>(n_y));
    blocks_two_kernel<<<static_cast<unsigned>(n_first + n_second), block, n_scratch * sizeof(float), stream_>>>(
        first, static_cast<unsigned>(n_first), second);
    check(cudaGetLastError());
  }

  // What the sort and the scans of up to `size` items need.
  static std::size_t scratch_bytes(std::size_t size) {
    std::size_t sort = 0;
    std::size_t sum = 0;
    std::size_t wide_sum = 0;
    cub::DoubleBuffer<std::uint64_t> keys;
    cub::DoubleBuffer<std::uint32_t> values;
    const int n = static_cast<int>(size);
    check(cub::DeviceRadixSort::SortPairs(nullptr, sort, keys, values, n));
    check(cub::DeviceScan::InclusiveSum(nullptr, sum, static_cast<std::uint32_t*>(nullptr),
                                        static_cast<std::uint32_t*>(nullptr), n));
    check(cub::DeviceScan::InclusiveSum(nullptr, wide_sum, static_cast<std::uint64_t*>(nullptr),
                                        static_cast<std::uint64_t*>(nullptr), n));
    return std::max({sort, sum, wide_sum});
  }

  // Sorts by the lowest n_bits, stably. Returns which of the two arrays hold the result.
  int sort_pairs(std::uint64_t* const* keys, std::uint32_t* const* values, std::size_t size, int n_bits,
                 Memory scratch) {
    cub::DoubleBuffer<std::uint64_t> k(keys[0], keys[1]);
    cub::DoubleBuffer<std::uint32_t> v(values[0], values[1]);
    check(cub::DeviceRadixSort::SortPairs(scratch.data, scratch.n_bytes, k, v, static_cast<int>(size), 0, n_bits, stream_));
    return k.selector;
  }

  template <class T>
  void inclusive_sum(T* data, std::size_t size, Memory scratch) {
    check(cub::DeviceScan::InclusiveSum(scratch.data, scratch.n_bytes, data, data, static_cast<int>(size), stream_));
  }

  void fill(void* target, int byte, std::size_t n_bytes) { check(cudaMemsetAsync(target, byte, n_bytes, stream_)); }

  void read(void* target, const void* source, std::size_t n_bytes) {
    check(cudaMemcpyAsync(target, source, n_bytes, cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
  }

  void read_two(void* target, const void* source, std::size_t n_bytes, void* target_2, const void* source_2,
                std::size_t n_bytes_2) {
    check(cudaMemcpyAsync(target, source, n_bytes, cudaMemcpyDeviceToHost, stream_));
    read(target_2, source_2, n_bytes_2);
  }

  // Also true where one cannot ask: the legacy stream while another stream is being captured.
  bool is_capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream_, &status) != cudaSuccess) {
      cudaGetLastError();
      return true;
    }
    return status != cudaStreamCaptureStatusNone;
  }

  // Record what `body` queues as a graph. On a stream of its own: the legacy default stream, which
  // is torch's unless told otherwise, cannot be captured.
  template <class Body>
  std::shared_ptr<void> record(Body&& body) {
    const Stream own;
    cudaStream_t const callers = stream_;
    check(cudaStreamBeginCapture(own.handle, cudaStreamCaptureModeThreadLocal));
    stream_ = own.handle;
    cudaGraph_t graph = nullptr;
    try {
      body();
    } catch (...) {
      stream_ = callers;
      cudaStreamEndCapture(own.handle, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    stream_ = callers;
    check(cudaStreamEndCapture(own.handle, &graph));
    cudaGraphExec_t exec = nullptr;
    const cudaError_t code = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    check(code);
    // Destroying a graph that still runs is allowed: it is freed when it is done.
    return {exec, [](void* e) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(e)); }};
  }

  void replay(void* graph) { check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_)); }

 private:
  static dim3 block_of(int n_packs) {
    return {static_cast<unsigned>(n_packs), static_cast<unsigned>(threads_per_block / n_packs), 1};
  }
  static unsigned n_blocks(std::size_t n_rows, unsigned rows_per_block) {
    return static_cast<unsigned>((n_rows + rows_per_block - 1) / rows_per_block);
  }

  cudaStream_t stream_;
};

template class GpuLattice<CudaDevice>;
template class GpuMeanField<CudaDevice>;

int n_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

bool can_run_on(int device) {
  make_current(device);
  cudaFuncAttributes attributes;
  const bool found = cudaFuncGetAttributes(&attributes, for_each_kernel<Iota>) == cudaSuccess;
  cudaGetLastError();
  return found;
}

std::string toolkit() {
  return "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

}  // namespace crfasrnn::gpu
