local models = require "llm_gateway.models"

local LIST = {
  { name = "small", aliases = { "default", "gpt-4o" }, upstream = "a",
    teams = {}, users = {} },
  { name = "Qwen/Qwen3-8B", aliases = {}, upstream = "b", teams = { "ml" },
    users = { "alice" }, served_as = "qwen" },
  { name = "secret", aliases = { "hidden" }, upstream = "c", teams = {},
    users = { "carol" } },
}


describe("models", function()
  local index = models.index(LIST)

  local function names(consumer)
    local list = {}
    for i, model in ipairs(models.all(index, models.caller(consumer))) do
      list[i] = model.name
    end

    return list
  end

  local function found(name, consumer)
    local model = models.find(index, name, models.caller(consumer))
    return model and model.name
  end

  it("are those that the caller may use, in the order of the settings",
     function()
    assert.same({ "small" }, names(nil))
    assert.same({ "small" }, names({ username = "bob" }))
    assert.same({ "small", "Qwen/Qwen3-8B" }, names({ username = "alice" }))
    assert.same({ "small", "Qwen/Qwen3-8B" },
                names({ username = "bob", tags = { "x", "team:ml" } }))
    assert.same({ "small", "secret" },
                names({ username = "carol", tags = { "team:mlx", "ml" } }))
    -- Kong allows consumers that have only an identity of another system
    assert.same({ "small", "secret" }, names({ custom_id = "carol" }))
    -- a user is no team, and a team no user
    assert.same({ "small" }, names({ username = "ml" }))
    assert.same({ "small" }, names({ username = "x",
                                     tags = { "team:alice", "team:" } }))
    -- what cjson has for null
    assert.same({ "small" }, names({ username = io.stdout, tags = io.stdout }))
  end)

  it("are found by name and alias, exactly", function()
    assert.equal("small", found("small"))
    assert.equal("small", found("gpt-4o"))
    for _, name in ipairs({ "Small", "small ", "", "gpt-4", "qwen", "list",
                            "secret", "hidden", "__index" }) do
      assert.is_nil(found(name, { username = "alice" }))
    end
    assert.equal("secret", found("hidden", { username = "carol" }))
  end)

  it("tell which name is there twice", function()
    assert.is_nil(models.fault(LIST))
    assert.is_nil(models.fault({}))
    for _, list in ipairs({
      { { name = "a" }, { name = "a" } },
      { { name = "a", aliases = { "b" } }, { name = "b" } },
      { { name = "a", aliases = { "b" } }, { name = "c", aliases = { "b" } } },
      { { name = "a", aliases = { "a" } } },
      { { name = "a", aliases = { "b", "b" } } },
    }) do
      assert.matches("two models have the name or alias '[ab]'",
                     models.fault(list))
    end
  end)
end)
