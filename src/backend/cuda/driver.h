/**
 * The CUDA driver, found with dlopen at run time: the same program runs on machines with and
 * without a GPU. Only what the backend calls is declared, from the public CUDA driver API
 * reference; no header or library of the toolkit is needed to build this.
 */
#ifndef PDVM_BACKEND_CUDA_DRIVER_H
#define PDVM_BACKEND_CUDA_DRIVER_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef int cu_result; /**< CUresult; 0 is success */
typedef int cu_device;
typedef uint64_t cu_address; /**< CUdeviceptr */
typedef struct CUctx_st *cu_context;
typedef struct CUmod_st *cu_module;
typedef struct CUfunc_st *cu_function;
typedef struct CUstream_st *cu_stream;
typedef struct CUevent_st *cu_event;
typedef struct CUgraph_st *cu_graph;
typedef struct CUgraphExec_st *cu_graph_exec;

/** Values of the API's enumerations that are used here. */
enum {
    CU_SUCCESS = 0,
    CU_ERROR_OUT_OF_MEMORY = 2,
    CU_ERROR_NOT_READY = 600,
    CU_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    CU_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
    CU_ATTRIBUTE_CLOCK_RATE = 13,
    CU_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_ATTRIBUTE_L2_CACHE_SIZE = 38,
    CU_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_ATTRIBUTE_COOPERATIVE_LAUNCH = 95,
    CU_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
};

/** Every entry point: name in this table, name in the library, arguments. */
#define CU_ENTRY_POINTS(X)                                                                         \
    X(init, "cuInit", (unsigned flags))                                                            \
    X(driver_version, "cuDriverGetVersion", (int *version))                                        \
    X(device_count, "cuDeviceGetCount", (int *count))                                              \
    X(device_get, "cuDeviceGet", (cu_device * device, int ordinal))                                \
    X(device_name, "cuDeviceGetName", (char *name, int size, cu_device device))                    \
    X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, cu_device device))     \
    X(context_retain, "cuDevicePrimaryCtxRetain", (cu_context * context, cu_device device))        \
    X(context_release, "cuDevicePrimaryCtxRelease_v2", (cu_device device))                         \
    X(context_set, "cuCtxSetCurrent", (cu_context context))                                        \
    X(context_synchronize, "cuCtxSynchronize", (void))                                             \
    X(module_load, "cuModuleLoadData", (cu_module * module, const void *image))                    \
    X(module_unload, "cuModuleUnload", (cu_module module))                                         \
    X(module_function, "cuModuleGetFunction",                                                      \
      (cu_function * function, cu_module module, const char *name))                                \
    X(function_attribute, "cuFuncGetAttribute", (int *value, int attribute, cu_function function)) \
    X(function_set_attribute, "cuFuncSetAttribute",                                                \
      (cu_function function, int attribute, int value))                                            \
    X(occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor",                                    \
      (int *blocks, cu_function function, int block_size, size_t shared_bytes))                    \
    X(memory_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t * total_bytes))                 \
    X(memory_alloc, "cuMemAlloc_v2", (cu_address * address, size_t bytes))                         \
    X(memory_free, "cuMemFree_v2", (cu_address address))                                           \
    X(host_alloc, "cuMemAllocHost_v2", (void **address, size_t bytes))                             \
    X(host_free, "cuMemFreeHost", (void *address))                                                 \
    X(copy_to_device, "cuMemcpyHtoD_v2", (cu_address to, const void *from, size_t bytes))          \
    X(copy_to_host, "cuMemcpyDtoH_v2", (void *to, cu_address from, size_t bytes))                  \
    X(copy_to_device_async, "cuMemcpyHtoDAsync_v2",                                                \
      (cu_address to, const void *from, size_t bytes, cu_stream stream))                           \
    X(copy_to_host_async, "cuMemcpyDtoHAsync_v2",                                                  \
      (void *to, cu_address from, size_t bytes, cu_stream stream))                                 \
    X(copy_on_device_async, "cuMemcpyDtoDAsync_v2",                                                \
      (cu_address to, cu_address from, size_t bytes, cu_stream stream))                            \
    X(memory_set_async, "cuMemsetD8Async",                                                         \
      (cu_address to, unsigned char value, size_t bytes, cu_stream stream))                        \
    X(stream_create, "cuStreamCreate", (cu_stream * stream, unsigned flags))                       \
    X(stream_destroy, "cuStreamDestroy_v2", (cu_stream stream))                                    \
    X(stream_synchronize, "cuStreamSynchronize", (cu_stream stream))                               \
    X(stream_begin_capture, "cuStreamBeginCapture_v2", (cu_stream stream, int mode))               \
    X(stream_end_capture, "cuStreamEndCapture", (cu_stream stream, cu_graph * graph))              \
    X(event_create, "cuEventCreate", (cu_event * event, unsigned flags))                           \
    X(event_destroy, "cuEventDestroy_v2", (cu_event event))                                        \
    X(event_record, "cuEventRecord", (cu_event event, cu_stream stream))                           \
    X(event_elapsed, "cuEventElapsedTime", (float *milliseconds, cu_event begin, cu_event end))    \
    X(launch, "cuLaunchKernel",                                                                    \
      (cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,  \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, cu_stream stream,                \
       void **arguments, void **extra))                                                            \
    X(launch_cooperative, "cuLaunchCooperativeKernel",                                             \
      (cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,  \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, cu_stream stream,                \
       void **arguments))                                                                          \
    X(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (cu_graph_exec * executable, cu_graph graph, unsigned long long flags))                      \
    X(graph_launch, "cuGraphLaunch", (cu_graph_exec executable, cu_stream stream))                 \
    X(graph_exec_destroy, "cuGraphExecDestroy", (cu_graph_exec executable))                        \
    X(graph_destroy, "cuGraphDestroy", (cu_graph graph))                                           \
    X(error_string, "cuGetErrorString", (cu_result error, const char **text))

/** The entry points of the driver. */
struct cuda_driver {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declarator and its parameters */
#define CU_DECLARE(name, symbol, arguments) cu_result(*name) arguments;
    /* NOLINTNEXTLINE(bugprone-macro-parentheses) */
    CU_ENTRY_POINTS(CU_DECLARE)
#undef CU_DECLARE
};

/**
 * The driver of this machine, loaded and initialised once per process and never unloaded. The
 * environment variable PDVM_LIBCUDA names another library file than libcuda.so.1.
 * PDVM_ERR_UNSUPPORTED says what is missing: the library, an entry point, a device.
 */
pdvm_status cuda_driver_load(const struct cuda_driver **out, pdvm_error *err);

/** PDVM_OK for CU_SUCCESS, else an error "CUDA: what: the driver's words". */
pdvm_status cuda_check(const struct cuda_driver *cu, cu_result result, const char *what,
                       pdvm_error *err);

/**
 * Allocates device memory in the current context, freed with memory_free. PDVM_ERR_MEMORY says how much
 * was asked for and is there on the device of that name, and what `advice` says; then *out is 0.
 */
pdvm_status cuda_memory(const struct cuda_driver *cu, const char *device, uint64_t size,
                        const char *what, const char *advice, cu_address *out, pdvm_error *err);

#endif
