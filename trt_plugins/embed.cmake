# Writes the files that NVRTC compiles kernels from into a C++ source: cmake -DROOT=... -DOUTPUT=... -DFILES=a,b -P embed.cmake
# A file is included by its path from ROOT; those of vq/jit/include by their names alone.
string(REPLACE "," ";" files "${FILES}")
set(text "#include \"vq/jit/sources.h\"\n\nnamespace graphopt::vq::jit {\n\n")
string(APPEND text "std::vector<NvrtcHeader> const& sources() {\n  static std::vector<NvrtcHeader> const all = {\n")
foreach(name IN LISTS files)
  file(READ "${ROOT}/${name}" content)
  string(REGEX REPLACE "^vq/jit/include/" "" name "${name}")
  string(APPEND text "{\"${name}\", R\"source(${content})source\"},\n")
endforeach()
string(APPEND text "};\n  return all;\n}\n\n}  // namespace graphopt::vq::jit\n")
file(WRITE "${OUTPUT}" "${text}")
