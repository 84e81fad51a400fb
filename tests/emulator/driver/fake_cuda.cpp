// fake_cuda.cpp -- a libcuda.so for machines without a GPU, as lazy as a driver may be: device memory is host memory that
// starts as garbage, a stream is a queue that runs when it is waited for. It holds the kernels and the emulator, which
// launches go to, so that any program runs on it that is started with it on its path.
// Environment: FAKE_VERSION (13000), FAKE_PTX (90, what kernels were compiled for), FAKE_DEVICES (1), FAKE_MEMORY (bytes),
// FAKE_LACKS (a kernel's name), FAKE_GRAPHS (any: says each graph that is launched).
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime.h"

namespace {
enum Result {
  kOk = 0, kInvalid = 1, kOutOfMemory = 2, kNoDevice = 100, kBadImage = 200, kNoContext = 201, kNotFound = 500, kFailed = 719,
  kNotWhileCapturing = 900, kNotCapturing = 901,
};

using Work = std::vector<std::function<int()>>;
struct Stream {
  Work queue;
  int error = kOk;  // of the first work that failed; it stays
  bool captures = false;  // what is put on it is not to run, but to become a graph
};
char context;
thread_local void* current;
std::mutex lock;
std::map<uint64_t, size_t> memory;

long long setting(const char* name, long long otherwise) {
  const char* text = getenv(name);
  return text ? atoll(text) : otherwise;
}
int later(void* stream, std::function<int()> work) {
  if (!current) return kNoContext;
  static_cast<Stream*>(stream)->queue.push_back(std::move(work));
  return kOk;
}
// What moves memory from or to the host, makes it or gives it back: a graph that did so would not be what is wanted here.
bool captures(void* stream) { return static_cast<Stream*>(stream)->captures; }
// A kernel of this very library, which programs load without sharing its names.
const void* kernel(const char* name) {
  Dl_info self;
  dladdr(&context, &self);
  void* library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  const void* found = dlsym(library, (std::string("emulator_kernel_") + name).c_str());
  return dlclose(library), found;
}
struct Launch {
  const EmulatorKernel* kernel;
  EmulatorConfig config;
  std::vector<std::vector<uint64_t>> values;  // in words, as structs are aligned to 8 bytes

  // Copies the values, which the caller need not keep. A signature has a letter for each, and a struct's size behind it.
  void copy(void** parameters) {
    for (const char* code = kernel->signature; *code;) {
      char type = *code++, *end;
      size_t bytes = type == 's' ? strtoul(code, &end, 10) : strchr("iIf", type) ? 4 : 8;
      if (type == 's') code = end;
      values.emplace_back((bytes + 7) / 8);
      memcpy(values.back().data(), parameters[values.size() - 1], bytes);
    }
  }
  int run() {
    std::vector<void*> arguments;
    for (auto& value : values) arguments.push_back(value.data());
    char error[2048] = "";
    if (!emulator_launch(kernel, &config, arguments.data(), error, sizeof error)) return kOk;
    fprintf(stderr, "kernel %s: %s\n", kernel->name, error);
    return kFailed;
  }
};
char* at(uint64_t address) { return reinterpret_cast<char*>(address); }

// Puts a launch on a stream; the last thread runs first, copies land at once.
int launch(const void* function, uint3 grid, uint3 block, unsigned cluster, unsigned shared, void* stream,
           void** parameters) {
  const auto [x, y, z] = grid;
  if (!x || !y || z != 1 || !block.x || block.x > 1024 || block.y != 1 || block.z != 1) return kInvalid;
  const EmulatorConfig config = {{x, y, 1}, {block.x, 1, 1}, cluster, shared, 1, 1, 0, nullptr};
  auto launch = std::make_shared<Launch>(Launch{static_cast<const EmulatorKernel*>(function), config, {}});
  launch->copy(parameters);
  return later(stream, [=] { return launch->run(); });
}
}  // namespace

extern "C" {
int cuDriverGetVersion(int* version) { return *version = int(setting("FAKE_VERSION", 13000)), kOk; }
int cuInit(unsigned) { return setting("FAKE_DEVICES", 1) ? kOk : kNoDevice; }
int cuGetErrorString(int error, const char** text) {
  *text = error == kOutOfMemory ? "out of memory" : error == kNoDevice ? "no CUDA-capable device is detected"
        : error == kFailed ? "unspecified launch failure" : "another error";
  return kOk;
}

int cuDeviceGetCount(int* count) { return *count = int(setting("FAKE_DEVICES", 1)), kOk; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, kOk; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  static const std::map<int, int> kAttributes = {{16, 132}, {75, 9}, {76, 0}, {97, 227 << 10}, {100, 0}, {115, 1}};  // an H100's
  auto found = kAttributes.find(attribute);
  return found == kAttributes.end() ? kInvalid : (*value = found->second, kOk);
}
int cuDevicePrimaryCtxRetain(void** made, int) { return *made = &context, kOk; }
int cuDevicePrimaryCtxRelease_v2(int) { return kOk; }
int cuCtxGetCurrent(void** is) { return *is = current, kOk; }
int cuCtxSetCurrent(void* wanted) { return current = wanted, kOk; }
int cuCtxSynchronize() { return current ? kOk : kNoContext; }

int cuStreamCreate(void** stream, unsigned) { return current ? (*stream = new Stream, kOk) : kNoContext; }
int cuStreamSynchronize(void* handle) {
  if (!current) return kNoContext;
  Stream* stream = static_cast<Stream*>(handle);
  if (stream->captures) return kNotWhileCapturing;
  auto queue = std::move(stream->queue);
  stream->queue.clear();
  for (auto& work : queue)
    if (stream->error == kOk) stream->error = work();
  return stream->error;
}
int cuStreamDestroy_v2(void* stream) { return delete static_cast<Stream*>(stream), kOk; }

int cuStreamBeginCapture_v2(void* handle, int) {
  Stream* stream = static_cast<Stream*>(handle);
  if (!current) return kNoContext;
  if (stream->captures || !stream->queue.empty()) return kInvalid;
  return stream->captures = true, kOk;
}
int cuStreamEndCapture(void* handle, Work** graph) {
  Stream* stream = static_cast<Stream*>(handle);
  if (!stream->captures) return kNotCapturing;
  stream->captures = false;
  *graph = new Work(std::move(stream->queue));
  return stream->queue.clear(), kOk;
}
int cuGraphInstantiateWithFlags(Work** ready, const Work* graph, unsigned long long) { return *ready = new Work(*graph), kOk; }
int cuGraphLaunch(const Work* ready, void* stream) {
  if (captures(stream)) return kNotWhileCapturing;
  if (getenv("FAKE_GRAPHS")) fprintf(stderr, "graph of %zu launches and copies\n", ready->size());
  return later(stream, [work = *ready] {
    for (const auto& one : work)
      if (int error = one()) return error;
    return int(kOk);
  });
}
int cuGraphDestroy(Work* graph) { return delete graph, kOk; }
int cuGraphExecDestroy(Work* ready) { return delete ready, kOk; }

int cuModuleLoadData(void** module, const void* image) {
  uint32_t magic;
  memcpy(&magic, image, 4);
  return magic == 0xBA55ED50 ? (*module = &context, kOk) : kBadImage;  // a fatbin's
}
int cuModuleUnload(void*) { return current ? kOk : kNoContext; }
int cuModuleGetFunction(const void** function, void*, const char* name) {
  const char* lacks = getenv("FAKE_LACKS");
  if (lacks && !strcmp(name, lacks)) return kNotFound;
  return (*function = kernel(name)) ? kOk : kNotFound;
}
int cuFuncGetAttribute(int* value, int attribute, const void*) {
  constexpr int kSharedBytes = 1, kRegisters = 4, kPtxVersion = 5;
  if (attribute == kSharedBytes) return *value = 1024, kOk;
  if (attribute == kRegisters) return *value = int(setting("FAKE_REGISTERS", 128)), kOk;
  return attribute == kPtxVersion ? (*value = int(setting("FAKE_PTX", 90)), kOk) : kInvalid;
}
int cuFuncSetAttribute(const void*, int, int value) { return value <= (227 << 10) - 1024 ? kOk : kInvalid; }

int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
  if (!current) return kNoContext;
  if (captures(stream)) return kNotWhileCapturing;
  if (!bytes) return kInvalid;
  if (bytes > size_t(setting("FAKE_MEMORY", 1ll << 32))) return kOutOfMemory;
  void* made = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(made, 0xFF, bytes);
  std::lock_guard hold(lock);
  memory[*address = reinterpret_cast<uint64_t>(made)] = bytes;
  return kOk;
}
int cuMemFreeAsync(uint64_t address, void* stream) {
  if (captures(stream)) return kNotWhileCapturing;
  std::lock_guard hold(lock);
  if (!memory.erase(address)) return kInvalid;
  return later(stream, [=] { return free(at(address)), kOk; });
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  return later(stream, [=] { return memset(at(to), value, bytes), kOk; });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  if (captures(stream)) return kNotWhileCapturing;
  const char* begin = static_cast<const char*>(from);
  return later(stream, [to, copy = std::vector<char>(begin, begin + bytes)] { return memcpy(at(to), copy.data(), copy.size()), kOk; });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  if (captures(stream)) return kNotWhileCapturing;
  return later(stream, [=] { return memcpy(to, at(from), bytes), kOk; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  return later(stream, [=] { return memcpy(at(to), at(from), bytes), kOk; });
}
int cuPointerGetAttribute(void*, int, uint64_t) { return kInvalid; }  // all host memory is pageable

int cuLaunchKernel(const void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void* stream, void** parameters, void**) {
  return launch(function, {x, y, z}, {threads, ty, tz}, 1, shared, stream, parameters);
}

// The driver's own layouts, as far as launches here use them.
struct LaunchAttribute {
  int id, unused;
  unsigned value[16];
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned count;
};
int cuLaunchKernelEx(const LaunchConfig* config, const void* function, void** parameters, void**) {
  constexpr int kClusterDimension = 4;
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->count; i++) {
    if (config->attributes[i].id != kClusterDimension) return kInvalid;
    cluster = config->attributes[i].value[0];
  }
  const auto [x, y, z] = config->grid;
  const auto [threads, ty, tz] = config->block;
  return launch(function, {x, y, z}, {threads, ty, tz}, cluster, config->shared, config->stream, parameters);
}
}
