# What every program that uses the kernels compiles: the extension module, and the test program that runs them under the sanitizers.
function(pellucid_kernels target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  target_sources(${target} PRIVATE ${here}/pool.cpp ${here}/processor.cpp ${here}/blocks.cpp ${here}/repack.cpp ${here}/product.cpp
                 ${here}/attend.cpp ${here}/lanes.cpp ${here}/plan.cpp ${here}/plan_steps.cpp ${here}/plan_product.cpp ${here}/plan_head.cpp ${here}/plan_experts.cpp
                 ${here}/stored.cpp ${here}/variant_portable.cpp ${here}/lanes_portable.cpp
                 ${here}/torch_threads.cpp ${here}/learn.cpp ${here}/learn_portable.cpp)
  target_include_directories(${target} PRIVATE ${here})
  target_compile_features(${target} PRIVATE cxx_std_20)
  # No contraction: where a product and a sum are one operation is written, so that every instance of a template rounds alike.
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=off -Wall -Wextra -fno-math-errno)
  target_link_libraries(${target} PRIVATE Threads::Threads)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    target_sources(${target} PRIVATE ${here}/variant_avx2.cpp ${here}/variant_avx512.cpp ${here}/variant_amx.cpp ${here}/lanes_avx2.cpp ${here}/lanes_avx512.cpp
                   ${here}/tiled_amx.cpp ${here}/learn_avx2.cpp ${here}/learn_avx512.cpp ${here}/attend_learn_amx.cpp)
    set_source_files_properties(${here}/variant_avx2.cpp ${here}/lanes_avx2.cpp ${here}/learn_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
    set(avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512
        -Wno-maybe-uninitialized -Wno-uninitialized)
    set_source_files_properties(${here}/variant_avx512.cpp ${here}/lanes_avx512.cpp ${here}/learn_avx512.cpp PROPERTIES COMPILE_OPTIONS "${avx512}")
    set_source_files_properties(${here}/variant_amx.cpp PROPERTIES COMPILE_OPTIONS "${avx512};-mamx-tile;-mamx-int8")
    set_source_files_properties(${here}/tiled_amx.cpp PROPERTIES COMPILE_OPTIONS "${avx512};-mamx-tile;-mamx-bf16")
    set_source_files_properties(${here}/attend_learn_amx.cpp PROPERTIES COMPILE_OPTIONS "${avx512};-mavx512bf16;-mamx-tile;-mamx-bf16")
    # gcc 12 warns of its own intrinsics there: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    target_sources(${target} PRIVATE ${here}/variant_neon.cpp ${here}/lanes_neon.cpp ${here}/learn_neon.cpp)
    set_source_files_properties(${here}/variant_neon.cpp ${here}/lanes_neon.cpp ${here}/learn_neon.cpp PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod+fp16")
  endif()
endfunction()
