# Defines the target cuda_runtime: headers and the static runtime library of the toolkit that nvcc belongs to.
#
# CMake's own FindCUDAToolkit wants an unversioned libcudart.so, which NVIDIA's wheels do not ship and nothing here uses.
get_filename_component(cuda_bin "${CMAKE_CUDA_COMPILER}" REALPATH)
get_filename_component(cuda_bin "${cuda_bin}" DIRECTORY)
find_path(GRAPHOPT_CUDA_INCLUDE_DIR cuda_runtime_api.h
          HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} "${cuda_bin}/../include"
          NO_DEFAULT_PATH)
find_library(GRAPHOPT_CUDART_STATIC cudart_static
             HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} "${cuda_bin}/../lib64" "${cuda_bin}/../lib"
             NO_DEFAULT_PATH)
if(NOT GRAPHOPT_CUDA_INCLUDE_DIR OR NOT GRAPHOPT_CUDART_STATIC)
  message(FATAL_ERROR "cuda_runtime_api.h or libcudart_static.a was not found beside ${CMAKE_CUDA_COMPILER}; "
                      "install the CUDA runtime's development files (wheel: nvidia-cuda-runtime)")
endif()

find_package(Threads REQUIRED)
find_library(GRAPHOPT_RT rt REQUIRED)
add_library(cuda_runtime INTERFACE)
target_include_directories(cuda_runtime SYSTEM INTERFACE "${GRAPHOPT_CUDA_INCLUDE_DIR}")
target_link_libraries(cuda_runtime INTERFACE "${GRAPHOPT_CUDART_STATIC}" Threads::Threads ${CMAKE_DL_LIBS} "${GRAPHOPT_RT}")
