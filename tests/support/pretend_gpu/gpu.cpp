// A pretended CUDA device for the CPU build of torch.
//
// Tensors say cuda:0 and lie in this machine's memory. Every operator that is called with one lends its memory to
// tensors of the host, lets the CPU's kernel do the work, and takes the results back. What a real device refuses is
// refused here: operators over tensors of both kinds, generators of the host, more memory than the limit.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

using at::Tensor;
using c10::Allocator, c10::DataPtr, c10::Device, c10::DeviceIndex, c10::DispatchKey, c10::DispatchKeySet, c10::IntArrayRef;
using c10::List, c10::OperatorHandle, c10::Storage, c10::Stream;

const Device GPU(c10::DeviceType::CUDA, 0);

// Memory: what is held is counted, and beyond the limit torch.OutOfMemoryError is raised.

int64_t used = 0, peak = 0, limit = -1;  // bytes; -1: no limit

void take(int64_t bytes) {
  TORCH_CHECK_WITH(
      OutOfMemoryError, limit < 0 || used + bytes <= limit, "CUDA out of memory (pretended): ", used, " of ", limit,
      " bytes are held, ", bytes, " are wanted");
  used += bytes;
  peak = std::max(peak, used);
}

struct Held {  // keeps a block of memory alive: a tensor of the host, or memory from malloc
  Tensor lender;
  void* memory;
  int64_t bytes;
};

void release(void* context) {
  auto* held = static_cast<Held*>(context);
  used -= held->bytes;
  free(held->memory);
  delete held;
}

struct Memory : Allocator {
  DataPtr allocate(size_t bytes) override {
    take(static_cast<int64_t>(bytes));
    void* memory = malloc(bytes + 64);
    memset(memory, 0x7f, bytes);  // uninitialised memory holds no zeros on a real device either
    return {memory, new Held{{}, memory, static_cast<int64_t>(bytes)}, &release, GPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
} memory;

// What torch asks of a device: it has one stream.

struct Guard : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, GPU); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, GPU); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, GPU); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

namespace at {
struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }  // nothing is copied behind
  bool isPinnedPtr(const void*) const override { return true; }                            // the host's back
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

// The same memory under another device.

Tensor over(const Tensor& t, DispatchKey key, DataPtr memory_of, Allocator* allocator) {
  auto storage = Storage(
      Storage::use_byte_size_t(), t.storage().nbytes(), std::move(memory_of), allocator, allocator != nullptr);
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return made;
}

Tensor as_host(const Tensor& t) {
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kCPU));  // may grow
  return over(t, DispatchKey::CPU, DataPtr(t.storage().mutable_data(), at::kCPU), nullptr);
}

Tensor as_device(const Tensor& t) {
  const auto bytes = static_cast<int64_t>(t.storage().nbytes());
  take(bytes);
  return over(t, DispatchKey::CUDA, DataPtr(t.storage().mutable_data(), new Held{t, nullptr, bytes}, &release, GPU), &memory);
}

// Counting: each operator by its name, whether the host waits for it, and the bytes that it reads and writes.

void (*told)(const char*, int, int64_t) = nullptr;

int64_t num_launched = 0;

void tell(const std::string& name, bool waits, int64_t bytes) {
  ++num_launched;
  if (told) told(name.c_str(), waits, bytes);
}

// Downloads that the host does not wait for arrive when it waits for an event or another copy behind them.

struct Behind {
  Tensor to, from;
  int64_t launched;
};
std::vector<Behind> behind;

void arrive(int64_t launched = std::numeric_limits<int64_t>::max()) {
  std::erase_if(behind, [&](auto& one) {
    if (one.launched > launched) return false;
    one.to.copy_(one.from);
    return true;
  });
}

bool makes_the_host_wait(const std::string& name) {  // the shape of the result depends on values
  return name == "aten::nonzero" || name == "aten::masked_select" || name == "aten::equal" ||
      name == "aten::repeat_interleave.Tensor" || name.rfind("aten::_unique", 0) == 0;
}

bool changes_few_places(const std::string& name) {  // of what it writes to, where that is not new
  return name.rfind("aten::scatter", 0) == 0 || name.rfind("aten::index_add", 0) == 0 ||
      name.rfind("aten::index_copy", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
}

bool only_writes(const std::string& name) { return name == "aten::zero_" || name.rfind("aten::fill_", 0) == 0; }

bool reads_few_rows(const std::string& name) {  // of its input, by indices
  return name == "aten::embedding" || name.rfind("aten::index", 0) == 0 || name.rfind("aten::gather", 0) == 0;
}

// An operator's tensors, in its arguments or results.

template <typename Change>
void change_tensors(c10::IValue& value, Change change) {
  if (value.isTensor()) {
    value = change(value.toTensor());
  } else if (value.isTensorList()) {
    std::vector<Tensor> changed;
    for (const Tensor& t : value.toTensorList()) changed.push_back(change(t));
    value = List<Tensor>(changed);
  } else if (value.isOptionalTensorList()) {
    List<std::optional<Tensor>> changed;
    for (std::optional<Tensor> t : value.toOptionalTensorList())
      changed.push_back(t ? std::optional(change(*t)) : t);
    value = changed;
  }
}

void on_host(const OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto name = toString(op.operator_name());
  const size_t first = stack->size() - schema.arguments().size();
  const bool indexes = name.find("index") != std::string::npos;
  bool waits = makes_the_host_wait(name);
  int64_t read = 0, written = 0, in_place = 0;
  std::vector<std::pair<Tensor, Tensor>> lent;  // (the host's, ours)

  for (size_t i = first; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    const auto& argument = schema.arguments()[i - first];
    const bool is_written = argument.alias_info() && argument.alias_info()->isWrite();
    const bool may_be_of_host = indexes && value.isOptionalTensorList();
    change_tensors(value, [&](const Tensor& t) {
      if (!t.defined()) return t;
      if (!t.is_cuda()) {
        TORCH_CHECK(
            t.dim() == 0 || may_be_of_host, name, ": expected all tensors to be on the same device, but found ", GPU,
            " and cpu");
        return t;
      }
      waits |= may_be_of_host && t.scalar_type() == at::kBool;  // how many are true?
      const auto bytes = static_cast<int64_t>(t.nbytes());
      const bool is_known = std::any_of(lent.begin(), lent.end(), [&](auto& pair) { return pair.second.is_same(t); });
      if (is_written && (is_known || !argument.is_out())) in_place = bytes;  // what was there is not new
      if (is_written) written += bytes;
      if (!argument.is_out() && !only_writes(name)) read += bytes;
      lent.emplace_back(as_host(t), t);
      return lent.back().first;
    });
    if (value.isGenerator()) TORCH_CHECK(value.toGenerator().device() == GPU, name, ": a generator of the CPU");
    if (value.isDevice()) value = Device(at::kCPU);
  }

  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);

  for (auto& [host, ours] : lent)
    if (host.sizes() != ours.sizes()) ours.set_(as_device(host));  // an `out` that has grown
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    change_tensors((*stack)[i], [&](const Tensor& result) {
      if (!result.defined()) return result;
      for (auto& [host, ours] : lent)
        if (result.is_same(host)) return ours;
      written += static_cast<int64_t>(result.nbytes());
      return as_device(result);
    });
  if (reads_few_rows(name) && !changes_few_places(name)) read = written;
  if (changes_few_places(name) && in_place) read -= in_place, written = read;
  tell(name, waits, read + written);
}

// Operators without a kernel of the host that could do them, and those that only look at memory in another way.

using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Where = std::optional<Device>;
using Flag = std::optional<bool>;

Tensor empty(IntArrayRef sizes, Type type, Layout, Where, Flag, std::optional<at::MemoryFormat> format) {
  const DispatchKeySet keys(DispatchKey::CUDA);
  return at::detail::empty_generic(sizes, &memory, keys, c10::dtype_or_default(type), format);
}

Tensor empty_strided(IntArrayRef sizes, IntArrayRef strides, Type type, Layout, Where, Flag) {
  const DispatchKeySet keys(DispatchKey::CUDA);
  return at::detail::empty_strided_generic(sizes, strides, &memory, keys, c10::dtype_or_default(type));
}

Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  const bool stays = to.is_cuda() && from.is_cuda(), is_late = non_blocking && !to.is_cuda();
  const auto bytes = static_cast<int64_t>(to.nbytes());
  tell(stays ? "aten::copy_" : to.is_cuda() ? "upload" : "download", !stays && !is_late, stays ? 2 * bytes : bytes);
  if (is_late) {
    memset(to.data_ptr(), 0x7f, to.nbytes());
    behind.push_back({to, as_host(from).clone(), num_launched});
    return to;
  }
  if (!stays) arrive();
  (to.is_cuda() ? as_host(to) : to).copy_(from.is_cuda() ? as_host(from) : from);
  return to;
}

at::Scalar item(const Tensor& t) {
  tell("item", true, 0);
  arrive();
  return as_host(t).item();
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_local_scalar_dense", &item);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_.source_Storage", at::native::set_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  // Composite operators for which the CPU has a kernel: one launch, as on a real device.
  for (auto name : {"native_layer_norm", "_foreach_norm.Scalar", "_foreach_mul_.Tensor", "_foreach_mul_.ScalarList",
                    "_foreach_add_.Scalar", "_foreach_copy_"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_host>());
}

extern "C" {
void gpu_limit(int64_t bytes) { limit = bytes; }
int64_t gpu_used() { return used; }
int64_t gpu_peak() { return peak; }
void gpu_reset_peak() { peak = used; }
void gpu_tell(void (*f)(const char*, int, int64_t)) { told = f; }
int64_t gpu_launched() { return num_launched; }
void gpu_wait(int64_t launched) {  // until the device has done so much; nothing behind that: it runs out of work
  if (launched == num_launched) tell("event", true, 0);
  arrive(launched);
}
}
