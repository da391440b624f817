// The C interface; see zipcache/zipcache.h.
