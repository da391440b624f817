// The text form: what is accepted, what is refused, and that refusals name the field.
#include <gtest/gtest.h>

#include <string>

#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

TEST(PolicyText, LayersWithoutAFieldAreRefused) {
  for (const char* text : {"zip,1-3:", "zip,1-3:k=8,1-3:", "zip,2:,k=4"}) {
    const Result<Policy> policy = parse_policy(text);
    ASSERT_FALSE(policy.ok()) << text;
    EXPECT_EQ(policy.status().code(), Code::BadPolicy);
  }
  Policy policy = *parse_policy("zip");
  policy.overrides.push_back({1, 3, ""});
  EXPECT_EQ(check(policy).code(), Code::BadPolicy);
}

TEST(PolicyText, EveryRowParsesToItselfAndKeepsItsName) {
  ASSERT_EQ(policy_rows().size(), 41u);
  for (const PolicyRow& row : policy_rows()) {
    const auto policy = parse_policy(row.name);
    ASSERT_TRUE(policy.ok()) << policy.status().message();
    EXPECT_EQ(policy->name, row.name);
    EXPECT_EQ(to_text(*policy), row.name);
    EXPECT_FALSE(row.summary.empty());
  }
}

TEST(PolicyText, RowsMeanWhatTheirSummariesSay) {
  EXPECT_TRUE(parse_policy("f16")->raw());
  const Policy zipcache = *parse_policy("zipcache");
  EXPECT_EQ(zipcache.tiers, (std::vector<Tier>{{4, 4}, {2, 2}}));
  EXPECT_EQ(zipcache.shares, std::vector{600});
  EXPECT_EQ(zipcache.k.axis, Axis::Channel);
  EXPECT_EQ(zipcache.v.axis, Axis::Cst);
  EXPECT_EQ(zipcache.saliency, Saliency{});
  EXPECT_EQ(zipcache.window, Window{});
  const Policy code = *parse_policy("zipcache-code");
  EXPECT_EQ(code.saliency.norm, Norm::FullCausal);
  EXPECT_TRUE(code.saliency.replacement);
  EXPECT_EQ(code.saliency.decode, DecodeProbes::Last);
  const Policy zip = *parse_policy("zip");
  EXPECT_EQ(zip.tiers, (std::vector<Tier>{{4, 4}, {4, 2}}));
  EXPECT_EQ(zip.shares, std::vector{100});
  EXPECT_EQ(zip.k, (Side{Axis::Channel, 32, Fit::Endpoint, Rotation::Hadamard}));
  EXPECT_EQ(zip.v, (Side{Axis::Token, 32, Fit::Unbiased, Rotation::Hadamard}));
  EXPECT_EQ(zip.k_rounding, Rounding::Query);
  EXPECT_EQ(parse_policy("zip2")->tiers, (std::vector<Tier>{{2, 2}}));
  EXPECT_EQ(parse_policy("zip3")->tiers, (std::vector<Tier>{{3, 2}}));
  EXPECT_EQ(parse_policy("zip4")->tiers, (std::vector<Tier>{{4, 3}}));
  EXPECT_EQ(zip.window, (Window{4, 128}));
  const Policy kivi = *parse_policy("kivi2");
  EXPECT_EQ(kivi.tiers, (std::vector<Tier>{{2, 2}}));
  EXPECT_EQ(kivi.k, (Side{Axis::ChannelGroup, 32, Fit::Endpoint, Rotation::None}));
  EXPECT_EQ(kivi.v, (Side{Axis::Group, 32, Fit::Endpoint, Rotation::None}));
  EXPECT_EQ(kivi.window, (Window{0, 128}));
  const Policy had4 = *parse_policy("had4");
  EXPECT_EQ(had4.tiers, (std::vector<Tier>{{4, 4}}));
  EXPECT_EQ(had4.k, (Side{Axis::Token, 32, Fit::Endpoint, Rotation::Hadamard}));
  EXPECT_EQ(had4.v, had4.k);
  const Policy kvarn = *parse_policy("kvarn-k4v2");
  EXPECT_EQ(kvarn.tiers, (std::vector<Tier>{{4, 2}}));
  EXPECT_EQ(kvarn.k, (Side{Axis::Channel, 32, Fit::Endpoint, Rotation::Hadamard, 8}));
  EXPECT_EQ(kvarn.v, (Side{Axis::Token, 32, Fit::Endpoint, Rotation::Hadamard, 8}));
  EXPECT_EQ(kvarn.window, (Window{128, 0}));
  EXPECT_EQ(parse_policy("kvarn-k2v2")->tiers, (std::vector<Tier>{{2, 2}}));
  EXPECT_EQ(parse_policy("kvarn-k4v4")->tiers, (std::vector<Tier>{{4, 4}}));
  const Policy sym4 = *parse_policy("sym4");
  EXPECT_EQ(sym4.k, (Side{Axis::Group, 32, Fit::Endpoint, Rotation::None, 0, Codec::Symmetric}));
  EXPECT_EQ(sym4.v, sym4.k);
  EXPECT_EQ(parse_policy("sym8")->k, sym4.k);
  EXPECT_EQ(parse_policy("sym8")->tiers, (std::vector<Tier>{{8, 8}}));
  EXPECT_EQ(parse_policy("sym4-had")->v.rotation, Rotation::Hadamard);
  EXPECT_EQ(parse_policy("sym8-had")->k.rotation, Rotation::Hadamard);
  const Policy turbo = *parse_policy("turbo-k4v4");
  EXPECT_EQ(turbo.k, (Side{Axis::Token, 32, Fit::Endpoint, Rotation::Hadamard, 0, Codec::Lloyd}));
  EXPECT_EQ(turbo.v, (Side{Axis::Token, 32, Fit::Endpoint, Rotation::None}));
  const Policy fp8 = *parse_policy("fp8");
  EXPECT_EQ(fp8.k, (Side{Axis::None, 32, Fit::Endpoint, Rotation::None, 0, Codec::E4m3}));
  EXPECT_EQ(fp8.v, fp8.k);
  const Policy nvfp4 = *parse_policy("nvfp4");
  EXPECT_EQ(nvfp4.k, (Side{Axis::Group, 16, Fit::Endpoint, Rotation::None, 0, Codec::E2m1}));
  EXPECT_EQ(nvfp4.v, nvfp4.k);
  const Policy roco = *parse_policy("roco");
  EXPECT_EQ(roco.saliency.statistic, Statistic::MeanStd);
  EXPECT_TRUE(roco.needs_scores() && roco.needs_squares() && roco.evicts());
  EXPECT_FALSE(parse_policy("h2o")->needs_squares());
  const Policy h2o = *parse_policy("h2o");
  EXPECT_EQ(h2o.tiers, (std::vector<Tier>{{16, 16}, {0, 0}}));
  EXPECT_EQ(h2o.saliency.recent_permille, 1000);
  EXPECT_EQ(h2o.saliency.norm, Norm::None);
  EXPECT_TRUE(h2o.evicts() && h2o.needs_scores() && !h2o.raw());
  const Policy streaming = *parse_policy("streaming");
  EXPECT_EQ(streaming.tiers, (std::vector<Tier>{{0, 0}}));
  EXPECT_EQ(streaming.window, (Window{4, 1020}));
  EXPECT_FALSE(streaming.needs_scores());
  const Policy snapkv = *parse_policy("snapkv");
  EXPECT_EQ(snapkv.saliency.pool_width, 5);
  EXPECT_EQ((snapkv.saliency.recent_permille * 512 + 999) / 1000, 32);
  EXPECT_EQ(parse_policy("tova")->saliency.statistic, Statistic::Last);
  EXPECT_EQ(parse_policy("mikv")->tiers, (std::vector<Tier>{{16, 16}, {2, 2}}));
  EXPECT_EQ(*parse_policy("uniform4,k=3,v=3"), [] {
    Policy same = *parse_policy("uniform3");
    same.name = "uniform4";
    return same;
  }());
  EXPECT_EQ(parse_policy("qserve4")->k.axis, Axis::Cst);
  const Policy wkvquant = *parse_policy("wkvquant");
  EXPECT_EQ(wkvquant.k, (Side{Axis::Token, 32, Fit::Endpoint}));
  EXPECT_EQ(wkvquant.v, wkvquant.k);
  EXPECT_EQ(wkvquant.tiers, (std::vector<Tier>{{4, 4}}));
  const Policy rotatekv = *parse_policy("rotatekv");
  EXPECT_EQ(
      rotatekv.k,
      (Side{Axis::Token, 32, Fit::Endpoint, Rotation::Hadamard, 0, Codec::Affine, {800, false}}));
  EXPECT_EQ(rotatekv.v, rotatekv.k);
  EXPECT_EQ(rotatekv.window, (Window{20, 0}));
  const Policy gear = *parse_policy("gear2-l");
  EXPECT_EQ(gear.k,
            (Side{Axis::ChannelGroup, 64, Fit::Endpoint, Rotation::None, 0, Codec::Affine, {}, 2}));
  EXPECT_EQ(gear.v,
            (Side{Axis::Group, 64, Fit::Endpoint, Rotation::None, 0, Codec::Affine, {}, 2}));
  EXPECT_EQ(parse_policy("kvzip")->tiers, (std::vector<Tier>{{16, 16}, {0, 0}}));
  EXPECT_EQ(parse_policy("uniform")->tiers, (std::vector<Tier>{{4, 4}}));
  EXPECT_EQ(parse_policy("random-tiers")->saliency.statistic, Statistic::Random);
  EXPECT_EQ(parse_policy("recency-tiers")->saliency.statistic, Statistic::Recency);
}

TEST(PolicyText, ChangedFieldsComeBackFromTheirText) {
  const char* const texts[] = {"zipcache,ratio=0.7",
                               "zipcache,ratio=0",
                               "zipcache,ratio=1",
                               "zipcache,ratio=0.001",
                               "uniform,k=8,v=3",
                               "uniform,k=16",
                               "uniform,bits=2",
                               "f16,k=4/2,v=8/3",
                               "zipcache,k=16/4",
                               "zipcache,bits=16/4/2/0,ratio=0.1/0.2/0.3",
                               "zipcache,k=16/4/2,v=4,ratio=0.001/0.999",
                               "zipcache,k=16/16/4,v=4/2,ratio=0/1",
                               "zip,k=4,v=4/3/2,ratio=0.1/0.2,alloc=knapsack,target_bits=3.5",
                               "rdkv,target_bits=0.125,alloc=knapsack_squares",
                               "rdkv,bits=2",
                               "rdkv,0-3:target_bits=4,5:alloc=fraction,5:ratio=0.1/0.1/0.1",
                               "zip,v_axis=group32,k_axis=token,k_round=nearest",
                               "zip,k_axis=channel32,v_axis=channel128,k_round=nearest",
                               "zip,dual=4",
                               "had4,codec=lloyd,k_codec=sym",
                               "fp8,v_axis=token,v_codec=e2m1,v=4",
                               "roco,ratio=0.5",
                               "zip,k_dual=1,v_dual=64",
                               "zip,fit=midpoint,rotate=none",
                               "kivi4,k_axis=channel,k_round=query",
                               "zip,k_round=nearest",
                               "zip,fit=mse,v_fit=unbiased",
                               "zip,k_fit=endpoint,v_fit=midpoint",
                               "zipcache,probes=2.5+7.5,norm=none",
                               "zipcache,norm=full_causal,replacement=1,decode_probes=last",
                               "zipcache,scope=layer,score=recency",
                               "zipcache,score=file:a b/\xc3\xa4=1:2.zcs,norm=none",
                               "zip,recent=64,score=file:/scores/x.zcs,0-3:k=8",
                               "zipcache,bits=4/0,pool=max7",
                               "zipcache,score=max",
                               "gear2-l,k_rank=0,v_rank=16,0-3:rank=1",
                               "kvzip,score=file:a.zcs",
                               "snapkv,pool=3,score=last",
                               "f16,bits=0",
                               "zip,sinks=0,recent=0",
                               "zip,sinks=128,recent=1048576",
                               "zip,0-3:k=8,0-3:v=4,7:v_axis=token,0-3:v=3",
                               "zipcache,29:k=4,recent=64",
                               "zipcache,cadence=prompt,seed=18446744073709551615",
                               "zipcache,k_rotate=hadamard,v_rotate=hadamard",
                               "oscar2,rotations=/tmp/a model=1.rot",
                               "zip2,k_rotate=file,rotations=m.rot",
                               "zip,0-3:v_rotate=file,rotations=m.rot",
                               "zip,0-1:rotate=file,0:rotate=none,rotations=m.rot",
                               "skvq,k_clip=q0.955,v_clip=1",
                               "kivi2,clip=0.001"};
  for (const char* text : texts) {
    const auto once = parse_policy(text);
    ASSERT_TRUE(once.ok()) << text << ": " << once.status().message();
    const auto twice = parse_policy(to_text(*once));
    ASSERT_TRUE(twice.ok()) << to_text(*once);
    EXPECT_EQ(*twice, *once) << text << " became " << to_text(*once);
  }
}

TEST(PolicyText, APathBelongsToAScoreByFileAlone) {
  const Policy by_file = *parse_policy("zipcache,score=file:a.zcs");
  EXPECT_EQ(by_file.saliency.statistic, Statistic::File);
  EXPECT_EQ(by_file.saliency.file, "a.zcs");
  EXPECT_FALSE(by_file.needs_scores());
  EXPECT_EQ(*parse_policy("zipcache,score=file:a.zcs,score=mean"), *parse_policy("zipcache"));
  // The row waits for its file; a cache of it is refused (ScoreFile.ARowWithoutItsFile...).
  const Policy kvzip = *parse_policy("kvzip");
  EXPECT_TRUE(kvzip.saliency.statistic == Statistic::File && kvzip.saliency.file.empty());
  EXPECT_EQ(*parse_policy("kvzip,score=file:a.zcs,score=file"), kvzip);
  EXPECT_EQ(to_text(*parse_policy("zipcache,score=file")), "zipcache,score=file");
  Policy wrong = by_file;
  wrong.saliency.statistic = Statistic::Mean;
  EXPECT_EQ(check(wrong).code(), Code::BadPolicy);
  wrong = by_file;
  wrong.saliency.file = "a,b.zcs";
  EXPECT_EQ(check(wrong).code(), Code::BadPolicy);
}

TEST(PolicyText, FieldsOfLayersMakeOverrides) {
  const auto policy = parse_policy("zip,0-3:k=8,0-3:v=4,recent=64,7:v=3");
  ASSERT_TRUE(policy.ok()) << policy.status().message();
  Policy expected = *parse_policy("zip,recent=64");
  expected.overrides = {{0, 3, "k=8,v=4"}, {7, 7, "v=3"}};
  EXPECT_EQ(*policy, expected);
  EXPECT_EQ(to_text(*policy), "zip,recent=64,0-3:k=8,0-3:v=4,7:v=3");
}

TEST(PolicyText, TwoSpellingsOfOnePolicyAreEqual) {
  EXPECT_EQ(*parse_policy("uniform,bits=3"), *parse_policy("uniform,k=3,v=3"));
  EXPECT_EQ(*parse_policy("zip,rotate=hadamard"), *parse_policy("zip,k_rotate=hadamard"));
  EXPECT_EQ(parse_policy("zipcache,bits=4/4")->tiers.size(), 1u);
  EXPECT_EQ(parse_policy("zipcache,ratio=0.29")->shares,
            std::vector{290});  // not 289 by a binary fraction
}

// The side with fewer widths repeats its last one, and what only repeats is no tier.
TEST(PolicyText, WidthsOfBothSidesMakeTheTiers) {
  const auto tiers = [](const char* text) {
    const auto policy = parse_policy(text);
    EXPECT_TRUE(policy.ok()) << text << ": " << policy.status().message();
    return policy.ok() ? policy->tiers : std::vector<Tier>{};
  };
  EXPECT_EQ(tiers("zipcache,bits=16/4/2/0,ratio=0/0/0"),
            (std::vector<Tier>{{16, 16}, {4, 4}, {2, 2}, {0, 0}}));
  EXPECT_EQ(tiers("zipcache,k=8,v=16/4/2,ratio=0/0"), (std::vector<Tier>{{8, 16}, {8, 4}, {8, 2}}));
  EXPECT_EQ(tiers("zipcache,k=16/4,v=4/3/2,ratio=0/0"),
            (std::vector<Tier>{{16, 4}, {4, 3}, {4, 2}}));
  EXPECT_EQ(tiers("zipcache,k=4/4/2,v=16/4/2,ratio=0/0"),
            (std::vector<Tier>{{4, 16}, {4, 4}, {2, 2}}));
  EXPECT_EQ(tiers("rdkv,k=4,v=4/2,target_bits=3.5"), (std::vector<Tier>{{4, 4}, {4, 2}}));
  EXPECT_EQ(tiers("rdkv,bits=2,alloc=fraction"), (std::vector<Tier>{{2, 2}}));
  EXPECT_EQ(parse_policy("zip,v=4/3/2,ratio=0.1/0.25")->shares, (std::vector{100, 250}));
  EXPECT_EQ(parse_policy("rdkv,target_bits=2.125")->target_millibits, 2125);
}

struct Wrong {
  const char* text;
  const char* names;  // what the message must contain
};

const Wrong kWrong[] = {
    {"", "rows are"},
    {" ", "rows are"},
    {"zipcach", "zipcach"},
    {"ZIPCACHE", "ZIPCACHE"},
    {"zipcache ", "rows are"},
    {",ratio=0.6", "rows are"},
    {"zipcache,,ratio=0.6", "field=value"},
    {"zipcache,ratio", "ratio"},
    {"zip,0-3", "layers:field=value"},
    {"zip,0-3:k", "0-3:k"},
    {"zip,-1-3:k=8", "-1-3:k"},
    {"zip,3-0:k=8", "layers 3-0"},
    {"zip,0-:k=8", "0-:k"},
    {"zip,:k=8", ":k"},
    {"zip,0-3:k=5", "field k"},
    {"zip,0-3:recent=5", "recent"},
    {"zip,0-3:1:k=8", "layers 0-3"},
    {"zipcache,ratio=", "field ratio"},
    {"zipcache,ratio=1.5", "field ratio"},
    {"zipcache,ratio=0.6/0.5", "field ratio"},
    {"zipcache,ratio=0.1/", "field ratio"},
    {"zipcache,ratio=0.1/0.1/0.1/0.1", "field ratio"},
    {"zipcache,ratio=0.1/0.1", "2 shares in ratio for 2 tiers"},
    {"zipcache,v=4/3/2", "1 shares in ratio for 3 tiers"},
    {"zipcache,bits=16/8/4/3/2", "field bits"},
    {"zipcache,k=4//2", "field k"},
    {"zipcache,k=4/2/", "field k"},
    {"zipcache,k=2/3/2", "field k"},
    {"zipcache,bits=4/4/2,ratio=0.1/0.1", "tier 2"},
    {"zipcache,v=4/2/0,ratio=0.1/0.1", "evicts"},
    {"zipcache,alloc=best", "field alloc"},
    {"zipcache,alloc=knapsack", "target_bits=0"},
    {"zipcache,alloc=knapsack,target_bits=1.9", "expected 2 to 4"},
    {"zipcache,alloc=knapsack,target_bits=2.0001", "field target_bits"},
    {"zipcache,target_bits=16.5", "field target_bits"},
    {"roco,alloc=knapsack,target_bits=4", "mean_std"},
    {"zipcache,ratio=-0.1", "field ratio"},
    {"zipcache,ratio=0.12345", "field ratio"},
    {"zipcache,ratio=nan", "field ratio"},
    {"zipcache,ratio=inf", "field ratio"},
    {"zipcache,ratio=1e300", "field ratio"},
    {"zipcache,ratio=0x1", "field ratio"},
    {"zipcache,ratio=60%", "field ratio"},
    {"zipcache,ratio=0,6", "field=value"},
    {"zipcache,ratio =0.6", "ratio "},
    {"zipcache,ratio= 0.6", "field ratio"},
    {"zipcache,=4", "unknown field"},
    {"zipcache,K=4", "unknown field"},
    {"zipcache,key=4", "unknown field \"key\""},
    {"zipcache,k=5", "field k:"},
    {"zipcache,k_round=up", "field k_round"},
    {"kivi4,k_round=query", "k_axis=channel"},
    {"zip,k_round=query,k_axis=token", "k_axis=channel"},
    {"zipcache,k=0", "0 and 4 bits"},
    {"zipcache,v=4/0", "2 and 0 bits"},
    {"zipcache,bits=0/2", "field bits"},
    {"zipcache,k=-4", "field k:"},
    {"zipcache,k=4.0", "field k:"},
    {"zipcache,k=2/4", "field k:"},
    {"zipcache,k=4/", "field k:"},
    {"zipcache,k=/2", "field k:"},
    {"zipcache,k=4/2/2/2/2", "field k:"},
    {"zipcache,k=99999999999", "field k:"},
    {"zipcache,v=1", "field v:"},
    {"zipcache,v=four", "field v:"},
    {"zipcache,bits=6", "field bits"},
    {"zipcache,k_axis=rows", "field k_axis"},
    {"zipcache,k_axis=group", "field k_axis"},
    {"zipcache,k_axis=group0", "field k_axis"},
    {"zipcache,k_axis=group7", "field k_axis"},
    {"zipcache,v_axis=group257", "field v_axis"},
    {"zipcache,k_axis=channel8", "field k_axis"},
    {"zipcache,k_axis=channel256", "field k_axis"},
    {"zipcache,k_axis=channel24", "channel24"},
    {"zipcache,k=3,k_axis=channel48", "channel48"},
    {"zipcache,k_axis=channel32x", "field k_axis"},
    {"zipcache,v_axis=group-32", "field v_axis"},
    {"zipcache,v_axis=group32x", "field v_axis"},
    {"zipcache,k_axis=group12", "k_axis"},
    {"zipcache,v_axis=group100", "v_axis"},
    {"zipcache,fit=best", "field fit"},
    {"zipcache,k_fit=Endpoint", "field k_fit"},
    {"zipcache,v_fit=", "field v_fit"},
    {"zipcache,rotate=yes", "field rotate"},
    {"zipcache,k_rotate=haar", "field k_rotate"},
    {"zipcache,v_rotate=1", "field v_rotate"},
    {"zip,rotations=m.rot", "rotate=file"},
    {"zip,0:rotations=m.rot", "unknown field"},
    {"oscar2,rotations=a;b", "field rotations"},
    {"oscar2,rotations=a\nb", "field rotations"},
    {"oscar2,clip=0", "field clip"},
    {"oscar2,k_clip=1.01", "field k_clip"},
    {"oscar2,v_clip=q0.5", "field v_clip"},
    {"oscar2,v_clip=0.9999", "field v_clip"},
    {"oscar2,k_clip=q", "field k_clip"},
    {"zip,v_clip=0.9", "v_fit=endpoint"},
    {"sym4,k_clip=0.9", "k_codec=affine"},
    {"zipcache,dual=-1", "field dual"},
    {"zipcache,dual=65", "field dual"},
    {"zip,k_dual=x", "field k_dual"},
    {"zipcache,v_dual=8", "v_axis=token"},
    {"zip,rank=-1", "field rank"},
    {"zip,k_rank=17", "field k_rank"},
    {"zip,v_rank=two", "field v_rank"},
    {"zipcache,score=median", "field score"},
    {"zipcache,score=files", "field score"},
    {"zipcache,score=file:", "field score"},
    {"zipcache,score=file:a,b.zcs", "b.zcs"},
    {"zipcache,score=file:a;b.zcs", "field score"},
    {"zipcache,score=file: a.zcs", "field score"},
    {"zipcache,score=file:a.zcs ", "field score"},
    {"zipcache,score=file:a\\b.zcs", "field score"},
    {"zipcache,score=file:\"a.zcs\"", "field score"},
    {"zipcache,score=file:a\tb.zcs", "field score"},
    {"zipcache,score=file:\xff.zcs", "field score"},
    {"zip,0-3:score=file:a.zcs", "may override"},
    {"zipcache,score=mean_std,probes=0+0", "mean_std"},
    {"zipcache,score=max,probes=0+0", "max"},
    {"zipcache,codec=nf4", "field codec"},
    {"zipcache,k_codec=", "field k_codec"},
    {"zipcache,v_codec=e2m1", "expected 4, 16 or 0"},
    {"fp8,k=4", "k_codec=e4m3: found 4 bits, expected 8, 16 or 0"},
    {"had4,k=8,k_codec=lloyd", "expected 2, 3, 4, 16 or 0"},
    {"uniform,k_codec=sym", "k_axis=channel128"},
    {"uniform,k_axis=none", "k_axis=none"},
    {"sym4,v_axis=none", "v_axis=none"},
    {"zip,v_codec=sym", "v_fit=endpoint"},
    {"zipcache,norm=all", "field norm"},
    {"snapkv,pool=0", "field pool"},
    {"snapkv,pool=4", "field pool"},
    {"snapkv,pool=33", "field pool"},
    {"snapkv,pool=max", "field pool"},
    {"snapkv,pool=avg5", "field pool"},
    {"zipcache,probes=10", "field probes"},
    {"zipcache,probes=5+", "field probes"},
    {"zipcache,probes=+5", "field probes"},
    {"zipcache,probes=-5+5", "field probes"},
    {"zipcache,probes=101+0", "field probes"},
    {"zipcache,probes=60+60", "probes"},
    {"zipcache,probes=0+0", "probes"},
    {"zipcache,probes=5+nan", "field probes"},
    {"zipcache,replacement=2", "field replacement"},
    {"zipcache,replacement=true", "field replacement"},
    {"zipcache,decode_probes=first", "field decode_probes"},
    {"zipcache,scope=token", "field scope"},
    {"zipcache,sinks=-1", "field sinks"},
    {"zipcache,sinks=129", "field sinks"},
    {"zipcache,recent=-1", "field recent"},
    {"zipcache,recent=1048577", "field recent"},
    {"zipcache,recent=1e3", "field recent"},
    {"zipcache,cadence=chunk", "field cadence"},
    {"zipcache,seed=-1", "field seed"},
    {"zipcache,seed=18446744073709551616", "field seed"},
    {"zipcache,seed=0x10", "field seed"},
    {"zipcache;ratio=0.6", "rows are"},
    {"../zipcache", "rows are"},
};

TEST(PolicyText, WrongTextsAreRefusedWithTheFieldNamed) {
  static_assert(std::size(kWrong) >= 40);
  for (const Wrong& wrong : kWrong) {
    const auto policy = parse_policy(wrong.text);
    if (policy.ok()) {
      ADD_FAILURE() << "accepted \"" << wrong.text << "\"";
      continue;
    }
    EXPECT_EQ(policy.status().code(), Code::BadPolicy) << wrong.text;
    EXPECT_NE(policy.status().message().find(wrong.names), std::string::npos)
        << wrong.text << " said: " << policy.status().message();
    EXPECT_EQ(policy.status().message().find('\n'), std::string::npos);
    EXPECT_TRUE(parse_policy("zipcache,ratio=0.6").ok());  // the next good call works
  }
}

TEST(PolicyText, HostileBytesAreEscapedAndCutInTheMessage) {
  const std::string long_text(2000, 'x');
  const auto cut = parse_policy(long_text);
  ASSERT_FALSE(cut.ok());
  EXPECT_LT(cut.status().message().size(), 600u);
  const auto escaped = parse_policy(std::string_view("zip\x1b[31m\n\0cache", 15));
  ASSERT_FALSE(escaped.ok());
  for (const char c : escaped.status().message()) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
  EXPECT_NE(escaped.status().message().find("\\x1b"), std::string::npos);
  EXPECT_EQ(parse_policy("zipcache,k=" + std::string(70000, '4')).status().code(), Code::BadPolicy);
}

TEST(PolicyText, EveryAcceptedTextIsAPolicyThatChecks) {
  // Single-character changes of good texts: whatever is accepted must check, and come back.
  const std::string good[] = {"zipcache,k=4/2,ratio=0.6,probes=5+5", "zip,v=16/4/2,ratio=0.1/0.2",
                              "rdkv,v=8/4/2/0,target_bits=2.5",
                              "zip,v_axis=group32,sinks=4,recent=128"};
  int accepted = 0;
  for (const std::string& text : good) {
    for (size_t at = 0; at < text.size(); ++at) {
      for (const char c : std::string("0129=,+/.-ax \x80")) {
        std::string changed = text;
        changed[at] = c;
        const auto policy = parse_policy(changed);
        if (!policy.ok()) {
          EXPECT_EQ(policy.status().code(), Code::BadPolicy) << changed;
          continue;
        }
        ++accepted;
        EXPECT_TRUE(check(*policy).ok()) << changed;
        EXPECT_EQ(*parse_policy(to_text(*policy)), *policy) << changed;
      }
    }
  }
  EXPECT_GT(accepted, 20);
}

}  // namespace
}  // namespace zipcache
