local api = require "llm_gateway.api"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"


describe("api", function()
  it("names the APIs as the collector does", function()
    local cases = cjson.decode(fixtures.table_of_cases("apis"))
    assert.is_true(#cases > 30)
    for _, case in ipairs(cases) do
      assert.equal(case.api, api.of_path(case.path), case.path)
    end
  end)

  it("takes a query for none of the path", function()
    assert.equal("chat", api.of_path("/v1/chat/completions?a=/v1/models"))
    assert.equal("models", api.of_path("/v1/models?x=/v1/chat/completions"))
    assert.equal("chat", api.of_path("/v1/chat/completions/?"))
  end)

  it("follows a path as it is normalized, and no further", function()
    for path, expected in pairs({
      ["/../../v1/chat/completions"] = "chat",
      ["/v1/chat/x/../completions"] = "chat",
      ["/v1/chat/%2e%2E/completions"] = "completions",
      ["/v1/chat/completions/."] = "chat",
      ["/v1/%6d%6F%64els"] = "models",
      ["/v1/chat%2Fcompletions"] = "other",
      ["/v1/chat%252Fcompletions"] = "other",
      ["/v1/ch%2561t/completions"] = "completions",
      ["/v1/CHAT/completions"] = "completions",
      ["/v1/chat/completions%"] = "other",
      ["/v1/chat/completions%0"] = "other",
      ["//"] = "other",
      [""] = "other",
    }) do
      assert.equal(expected, api.of_path(path), path)
    end
  end)
end)
