// Ctrl-C and the termination signal: the first asks running work to stop at its next good place,
// the second ends the process.
#pragma once

namespace zipcache::cli {

void watch_interrupts();
bool interrupted();
// 130 after Ctrl-C, 143 after a termination signal.
int interrupt_exit_status();

}  // namespace zipcache::cli
