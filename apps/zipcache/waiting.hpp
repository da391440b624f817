// How idle worker threads wait: asleep, unless the user chose otherwise.
//
// llama.cpp's OpenMP workers spin between operations. Where other programs, or two engines in one
// process, share the processor, spinning takes the time that the working thread needs.
#pragma once

namespace zipcache::cli {

// Starts this program again with OMP_WAIT_POLICY=passive unless it, or GOMP_SPINCOUNT, is set:
// OpenMP reads them before main() begins. Returns when there is nothing to do or a new start is
// impossible.
void wait_asleep(char** argv);

// "passive", "active" or "default": what OpenMP was told.
const char* wait_policy();

}  // namespace zipcache::cli
