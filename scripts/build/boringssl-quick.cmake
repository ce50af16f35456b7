# Builds BoringSSL in about half of its processor time, for programs that are built to be tried or tested. Releases do
# not use it. What costs time in cryptography is assembly, which is the same.
#
# A toolchain file because boring-sys asks the environment for one, and for nothing else that comes so far:
# HOST_CMAKE_TOOLCHAIN_FILE names it. Other projects of CMake are left as they are.

set(CMAKE_PROJECT_BoringSSL_INCLUDE "${CMAKE_CURRENT_LIST_FILE}")

if(PROJECT_NAME STREQUAL "BoringSSL" AND NOT qmux_is_asked)
  set(qmux_is_asked TRUE)
  # At the end of BoringSSL's own file, when its targets are there.
  function(qmux_build_quickly)
    foreach(target crypto fipsmodule ssl)
      # Behind flags of BoringSSL, and so in their place. -w: -Werror stops at what compilers guess at -O1.
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1> -g0 -w)
    endforeach()
    foreach(target crypto ssl)
      target_precompile_headers(${target} PRIVATE
        <algorithm> <functional> <memory> <optional> <string> <string_view> <utility> <vector>)
    endforeach()
  endfunction()
  cmake_language(DEFER CALL qmux_build_quickly)
endif()
