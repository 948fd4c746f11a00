// NodeCore as a Python object: the core, and the answers of fetches on their way to Python.
#pragma once
#include <nanobind/nanobind.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/node_core.hpp"

namespace kvstore::bind {

// Outlives the core in callbacks.
struct Completions {
  Completions();
  ~Completions();
  void put(std::uint64_t token, FetchAnswer&& answer);
  std::vector<std::pair<std::uint64_t, FetchAnswer>> take();

  std::mutex mutex;
  std::vector<std::pair<std::uint64_t, FetchAnswer>> done;
  int event;
};

struct CoreClass {
  CoreClass(const CoreConfig& config, void* meta, std::size_t meta_bytes, std::uint64_t incarnation)
      : core(config, meta, meta_bytes, incarnation), completions(std::make_shared<Completions>()) {}
  NodeCore core;
  std::shared_ptr<Completions> completions;
};

// What surrounds the class, and its calls by what they are about; kvstore_core.cpp puts it together.
void bind_core_config(nanobind::module_& m);            // kvstore_core_config.cpp
void bind_core_rows(nanobind::module_& m);              // kvstore_core_rows.cpp
void bind_calls(nanobind::class_<CoreClass>& core);     // kvstore_core_calls.cpp
void bind_counters(nanobind::class_<CoreClass>& core);  // kvstore_counters.cpp
void bind_objects(nanobind::class_<CoreClass>& core);   // kvstore_objects.cpp
void bind_held(nanobind::class_<CoreClass>& core);      // kvstore_claims.cpp

}  // namespace kvstore::bind
