# What `cmake --install build` puts where, and how other builds find it: find_package(zipcache) with
# the target zipcache::zipcache, or pkg-config with the name zipcache.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(zipcache_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/zipcache)

install(TARGETS zipcache_shared zipcache_cuda_shared EXPORT zipcache-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
# The C interface is what the library exports; the C++ headers describe symbols that it keeps hidden.
install(FILES ${PROJECT_SOURCE_DIR}/include/zipcache/zipcache.h
  ${PROJECT_SOURCE_DIR}/include/zipcache/zipcache_cuda.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/zipcache)

# Beside the library, so that one folder holds all that GGML_BACKEND_PATH may have to name.
if(TARGET ggml-zipcache)
  install(TARGETS ggml-zipcache LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
if(TARGET zipcache_cli)
  # The program keeps using the llama.cpp that it was linked with. By name, because CMake leaves folders
  # inside the project, as .venv is, out of INSTALL_RPATH_USE_LINK_PATH.
  get_target_property(zipcache_llama_library llama LOCATION)
  cmake_path(GET zipcache_llama_library PARENT_PATH zipcache_llama_folder)
  set_target_properties(zipcache_cli PROPERTIES INSTALL_RPATH ${zipcache_llama_folder})
  install(TARGETS zipcache_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

install(EXPORT zipcache-targets NAMESPACE zipcache:: DESTINATION ${zipcache_cmake_dir})
configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/zipcache-config.cmake.in ${PROJECT_BINARY_DIR}/zipcache-config.cmake
  INSTALL_DESTINATION ${zipcache_cmake_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/zipcache-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/zipcache-config.cmake
  ${PROJECT_BINARY_DIR}/zipcache-config-version.cmake DESTINATION ${zipcache_cmake_dir})

# The way from zipcache.pc back to the prefix, so that an installed tree can be moved.
file(RELATIVE_PATH zipcache_pc_to_prefix
  ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" zipcache_pc_to_prefix ${zipcache_pc_to_prefix})
configure_file(${CMAKE_CURRENT_LIST_DIR}/zipcache.pc.in ${PROJECT_BINARY_DIR}/zipcache.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/zipcache.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
