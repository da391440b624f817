// llama.cpp's messages: silent unless asked for, and its errors kept, so that a failure can say
// why.
#pragma once

#include <string>

namespace zipcache::cli {

// From now on llama.cpp writes to standard error when `verbose`, and nowhere otherwise.
void capture_llama_log(bool verbose);

// Errors since the last call, the newest few, as one line; empty when there were none.
std::string take_llama_errors();

}  // namespace zipcache::cli
