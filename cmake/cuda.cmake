# The CUDA backend, an extension module of its own beside _lattice: a machine without a CUDA compiler
# builds everything else as if this file were not there, and a machine without a GPU can import it.
set(CRFASRNN_CUDA "auto" CACHE STRING "Build the CUDA backend: auto (where a CUDA compiler is found), on, off")
set_property(CACHE CRFASRNN_CUDA PROPERTY STRINGS auto on off)
# One architecture with its PTX, which newer GPUs compile for themselves: quick to build, and enough for
# one's own machine. Wheels for everyone take those that current torch supports, see pyproject.toml; PTX of
# the last two generations serves all that come after.
set(CRFASRNN_CUDA_ARCHITECTURES "90" CACHE STRING "Compute capabilities to compile for, as CMAKE_CUDA_ARCHITECTURES")

function(crfasrnn_add_gpu_module name)
  nanobind_add_module(${name} STABLE_ABI NB_STATIC ${EXT_DIR}/bindings_cuda.cpp)
  target_compile_definitions(${name} PRIVATE CRFASRNN_VERSION="${PROJECT_VERSION}")
  foreach(sanitizer ${CRFASRNN_SANITIZE})
    target_link_options(${name} PRIVATE -fsanitize=${sanitizer})
  endforeach()
  install(TARGETS ${name} LIBRARY DESTINATION napari_crfasrnn/_ext)
endfunction()

option(CRFASRNN_HOST_LOOPS "Build the CUDA backend in host loops too: for tests, of no use in a release" OFF)
if(CRFASRNN_HOST_LOOPS)
  add_library(crfasrnn_items STATIC ${EXT_DIR}/lattice_items.cpp)
  target_link_libraries(crfasrnn_items PRIVATE crfasrnn_options)
  set_target_properties(crfasrnn_items PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  crfasrnn_add_gpu_module(_lattice_items)
  target_compile_definitions(_lattice_items PRIVATE CRFASRNN_HOST_LOOPS)
  target_link_libraries(_lattice_items PRIVATE crfasrnn_items)
endif()

string(TOLOWER "${CRFASRNN_CUDA}" crfasrnn_cuda)
if(NOT crfasrnn_cuda MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "CRFASRNN_CUDA must be auto, on or off, got ${CRFASRNN_CUDA}")
endif()
set(crfasrnn_cuda_found FALSE)
if(NOT crfasrnn_cuda STREQUAL "off")
  # Before CMake looks for a compiler it must know what to compile for: it would ask the GPU.
  set(CMAKE_CUDA_ARCHITECTURES ${CRFASRNN_CUDA_ARCHITECTURES})
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # CUB's sort and scan in the form that lattice_cuda.cu calls came with 12.0, as did C++20.
    # CMake before 3.26 does not know how to ask for it.
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.0: not used")
    elseif(NOT "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
      message(STATUS "CMake ${CMAKE_VERSION} knows no C++20 for CUDA: not used")
    else()
      set(crfasrnn_cuda_found TRUE)
    endif()
  endif()
  if(crfasrnn_cuda STREQUAL "on" AND NOT crfasrnn_cuda_found)
    message(FATAL_ERROR "CRFASRNN_CUDA=on needs CMake 3.26 or newer and nvcc 12.0 or newer; set CUDACXX to its path")
  endif()
endif()

if(crfasrnn_cuda_found)
  message(STATUS "CUDA backend: ${CMAKE_CUDA_COMPILER_VERSION} for ${CRFASRNN_CUDA_ARCHITECTURES}")
  add_library(crfasrnn_cuda STATIC ${EXT_DIR}/lattice_cuda.cu)
  target_compile_features(crfasrnn_cuda PRIVATE cuda_std_20)
  # The runtime is inside: no CUDA library is needed to import the module, only the driver to use it.
  set_target_properties(crfasrnn_cuda PROPERTIES
                        CUDA_ARCHITECTURES "${CRFASRNN_CUDA_ARCHITECTURES}" CUDA_RUNTIME_LIBRARY Static
                        POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden)
  # No contraction: the simplices are the CPU's to the bit. The value loops say fmaf themselves.
  target_compile_options(crfasrnn_cuda PRIVATE --fmad=false)
  if(NOT MSVC)
    target_compile_options(crfasrnn_cuda PRIVATE -Xcompiler=-ffp-contract=off -Xcompiler=-fno-math-errno)
  endif()
  crfasrnn_add_gpu_module(_lattice_cuda)
  set_target_properties(_lattice_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(_lattice_cuda PRIVATE crfasrnn_cuda)
else()
  message(STATUS "CUDA backend: not built")
endif()
