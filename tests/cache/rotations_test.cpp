// Files of rotations: what is written comes back, and nothing else is taken.
#include "zipcache/rotations.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "support/harness.hpp"
#include "support/rotations.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace zipcache {
namespace {

using test::RotationFile;
using test::TemporaryFile;

const std::vector<LayerShape> kLayers = {{2, 16, 24}, {1, 32, 16}};

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// With the check sum that the content should have.
std::string sealed(std::string bytes) {
  const uint64_t sum = XXH3_64bits(bytes.data(), bytes.size() - 8);
  std::memcpy(bytes.data() + bytes.size() - 8, &sum, 8);
  return bytes;
}

Status load(const std::string& bytes) {
  const TemporaryFile file(".rot", bytes);
  return load_rotations(file.path()).status();
}

void expect_refused(const Status& status, Code code, std::initializer_list<const char*> words) {
  EXPECT_EQ(status.code(), code) << status.message();
  for (const char* word : words)
    EXPECT_NE(status.message().find(word), std::string::npos) << word << ": " << status.message();
}

TEST(RotationFiles, WhatIsWrittenComesBack) {
  Rotations rotations = test::random_rotations(kLayers);
  rotations.layers.insert(rotations.layers.begin() + 1, LayerRotations{});  // a layer without cache
  rotations.about = "fitted to nothing";
  const RotationFile file(rotations);
  const auto back = load_rotations(file.path());
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->about, rotations.about);
  ASSERT_EQ(back->layers.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(back->layers[i].shape, rotations.layers[i].shape);
    EXPECT_EQ(back->layers[i].k, rotations.layers[i].k);
    EXPECT_EQ(back->layers[i].v, rotations.layers[i].v);
  }
}

// The bytes of format 1: two permutations of 16 channels.
TEST(RotationFiles, TheBytesAreThoseOfTheFormat) {
  Rotations rotations{"ab", {{{1, 16, 16}, std::vector<float>(256), std::vector<float>(256)}}};
  for (size_t i = 0; i < 16; ++i)
    rotations.layers[0].k[i * 16 + 15 - i] = rotations.layers[0].v[i * 17] = 1;
  const RotationFile file(rotations);
  const std::string bytes = bytes_of(file.path());
  ASSERT_EQ(bytes.size(), 8 + 3 * 4 + 2 + 3 * 4 + 2 * 256 * 4 + 8u);
  const char head[] = "ZCROTATE\1\0\0\0\1\0\0\0\2\0\0\0ab\1\0\0\0\20\0\0\0\20\0\0\0";
  EXPECT_EQ(bytes.substr(0, 34), std::string(head, 34));
  float first[17];
  std::memcpy(first, bytes.data() + 34, sizeof first);
  for (int i = 0; i < 17; ++i) EXPECT_EQ(first[i], i == 15 ? 1.0f : 0.0f);
  EXPECT_EQ(sealed(bytes), bytes);
}

TEST(RotationFiles, EveryChangedByteIsSeen) {
  const RotationFile file(std::vector<LayerShape>{{1, 16, 16}});
  const std::string whole = bytes_of(file.path());
  ASSERT_TRUE(load(whole).ok());
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string bytes = whole;
    bytes[i] ^= 0x10;
    const Status status = load(bytes);
    ASSERT_EQ(status.code(), Code::BadData) << i;
    ASSERT_NE(status.message().find("fit-rotations"), std::string::npos) << status.message();
  }
}

TEST(RotationFiles, CutAndLengthenedFilesAreRefused) {
  const RotationFile file(std::vector<LayerShape>{{1, 16, 16}});
  const std::string whole = bytes_of(file.path());
  for (size_t n = 0; n < whole.size(); n += n < 64 ? 1 : 97)
    ASSERT_EQ(load(whole.substr(0, n)).code(), Code::BadData) << n;
  EXPECT_EQ(load(whole + '\0').code(), Code::BadData);
  expect_refused(load(sealed(whole + std::string(8, '\0'))), Code::BadData, {"size", "head says"});
  expect_refused(load(sealed(whole.substr(0, whole.size() - 4))), Code::BadData, {"head says"});
  expect_refused(load("GGUF" + whole), Code::BadData, {"ZCROTATE"});
}

// Heads that promise more than there is must not make anyone reserve memory for it.
TEST(RotationFiles, SizesThatAreNotThereAreRefused) {
  const RotationFile file(std::vector<LayerShape>{{1, 16, 16}});
  const std::string whole = bytes_of(file.path());
  for (const size_t field : {12, 16, 26, 30, 34}) {  // layers, description, heads, K, V
    for (const uint32_t value : {0u, 17u, 1000u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
      std::string bytes = whole;
      std::memcpy(bytes.data() + field, &value, 4);
      ASSERT_EQ(load(sealed(bytes)).code(), Code::BadData) << field << " " << value;
    }
  }
  std::string bytes = whole;
  bytes[8] = 2;
  expect_refused(load(sealed(bytes)), Code::BadData, {"version 2", "reads 1"});
}

TEST(RotationFiles, MatricesThatAreNotOrthogonalAreRefusedByName) {
  const auto changed = [](auto&& change) {
    Rotations rotations = test::random_rotations(kLayers);
    change(rotations);
    return check(rotations);
  };
  EXPECT_TRUE(changed([](Rotations&) {}).ok());
  expect_refused(changed([](Rotations& r) { r.layers[0].k[256 + 7] += 0.01f; }), Code::BadData,
                 {"layer 0", "K", "head 1", "orthogonal", "0.0001"});
  expect_refused(changed([](Rotations& r) { r.layers[1].v[3] = NAN; }), Code::BadData,
                 {"layer 1", "V", "head 0"});
  expect_refused(changed([](Rotations& r) {
                   for (float& x : r.layers[0].v) x *= 1.001f;  // turned right, too long
                 }),
                 Code::BadData, {"layer 0", "V", "head 0"});
  expect_refused(changed([](Rotations& r) { r.layers[1].k.pop_back(); }), Code::BadData,
                 {"layer 1", "K", "1023"});
  expect_refused(changed([](Rotations& r) { r.layers[0].shape.k_dim = 20; }), Code::BadData,
                 {"layer 0", "20"});
  expect_refused(changed([](Rotations& r) { r.layers.clear(); }), Code::BadData, {"0 layers"});
  Rotations rotations = test::random_rotations(kLayers);
  rotations.layers[0].k[0] = 2;
  const TemporaryFile file(".rot", "");
  EXPECT_FALSE(save_rotations(file.path(), rotations).ok());
}

TEST(RotationFiles, AMissingFileAndAFolderAreErrorsOfTheEnvironment) {
  expect_refused(load_rotations("/nowhere/x.rot").status(), Code::Environment, {"/nowhere/x.rot"});
  expect_refused(load_rotations("/tmp").status(), Code::Environment, {"/tmp"});
  expect_refused(save_rotations("/nowhere/x.rot", test::random_rotations(kLayers)),
                 Code::Environment, {"/nowhere/x.rot"});
}

TEST(RotationsOfPolicies, ARowWithoutItsFileSaysHowToMakeOne) {
  for (const auto& [row, method] :
       {std::pair{"oscar2", "--method oscar"}, {"skvq", "--method permute"}}) {
    const auto cache = Cache::create({1, 128, {{1, 64, 64}}}, *parse_policy(row));
    expect_refused(cache.status(), Code::BadPolicy,
                   {row, "zipcache fit-rotations", method, ",rotations=FILE"});
    EXPECT_EQ(check_rotations(*parse_policy(row)).code(), Code::BadPolicy);
  }
  EXPECT_TRUE(check_rotations(*parse_policy("zip")).ok());
}

TEST(RotationsOfPolicies, FilesOfOtherModelsAreRefusedByName) {
  const RotationFile file(std::vector<LayerShape>{{2, 64, 64}, {2, 64, 32}});
  const Policy policy = *parse_policy("zip,rotate=file,rotations=" + file.path());
  const auto refusal = [&](std::vector<LayerShape> layers, std::vector<int> numbers = {}) {
    return Cache::create({1, 128, std::move(layers), std::move(numbers)}, policy).status();
  };
  EXPECT_TRUE(refusal({{2, 64, 64}, {2, 64, 32}}).ok());
  expect_refused(refusal({{2, 64, 64}}), Code::Incompatible, {"2 layers, expected 1", "rotations"});
  expect_refused(refusal({{2, 64, 64}, {2, 64, 32}, {2, 64, 64}}), Code::Incompatible,
                 {"2 layers"});
  expect_refused(refusal({{2, 64, 64}, {2, 64, 64}}), Code::Incompatible,
                 {"layer 1", "32 (V)", "of 64 and 64"});
  expect_refused(refusal({{1, 64, 64}, {2, 64, 32}}), Code::Incompatible,
                 {"layer 0", "2 KV heads"});
  // One of a model's two caches has the layers that its numbers say.
  EXPECT_TRUE(refusal({{2, 64, 32}}, {1}).ok());
  EXPECT_EQ(refusal({{2, 64, 64}}, {1}).code(), Code::Incompatible);
  EXPECT_EQ(refusal({{2, 64, 64}}, {2}).code(), Code::Incompatible);
}

// The cache of the second layer alone turns rows by the second layer's matrices.
TEST(RotationsOfPolicies, ACacheOfSomeLayersGoesByTheirNumbers) {
  const RotationFile both(test::random_rotations({{1, 64, 64}, {1, 64, 64}}));
  Rotations second = test::random_rotations({{1, 64, 64}, {1, 64, 64}});
  second.layers.erase(second.layers.begin());
  const RotationFile alone(second);
  const auto rows = [](CacheShape shape, const std::string& path) {
    test::Harness harness(std::move(shape), "uniform,bits=2,rotate=file,rotations=" + path, 1);
    EXPECT_TRUE(harness.feed(140).ok());
    return harness.read(0, SideId::K);
  };
  const auto expected = rows({1, 200, {{1, 64, 64}}}, alone.path());
  EXPECT_EQ(rows({1, 200, {{1, 64, 64}}, {1}}, both.path()), expected);
}

}  // namespace
}  // namespace zipcache
