-- What Kong's own schema library does not check, see 01-schema_spec.

describe("schema of llm-router", function()
  local schema, model, check

  setup(function()
    package.loaded["kong.db.schema.typedefs"] = {
      protocols_http = { type = "set" },
      no_consumer = { type = "foreign" },
    }
    schema = require "kong.plugins.llm-router.schema"
    model = {}
    for _, field in ipairs(schema.fields) do
      if field.config then
        assert.equal(1, #field.config.fields)
        local models = field.config.fields[1].models
        assert.same({}, models.default)
        assert.equal("array", models.type)
        for _, setting in ipairs(models.elements.fields) do
          local name, definition = next(setting)
          model[name] = definition
        end
      end
    end
    check = schema.entity_checks[1].custom_entity_check
  end)

  teardown(function()
    package.loaded["kong.db.schema.typedefs"] = nil
    package.loaded["kong.plugins.llm-router.schema"] = nil
  end)

  it("has the settings that are documented", function()
    local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
    local page = assert(io.open(here .. "/../../../docs/models.md")):read("*a")
    local count = 0
    for name, definition in pairs(model) do
      count = count + 1
      assert.is_truthy(page:find("`" .. name .. "`", 1, true), name)
      assert.matches("^%u.+%.$", definition.description)
    end
    assert.equal(7, count)
    for _, name in ipairs({ "name", "upstream" }) do
      assert.is_true(model[name].required)
      assert.is_nil(model[name].default)
    end
    for _, name in ipairs({ "aliases", "teams", "users" }) do
      assert.same({}, model[name].default)
    end
    assert.is_true(model.key.encrypted and model.key.referenceable)
  end)

  it("takes a name once only", function()
    local function checked(models)
      return check.fn({ config = { models = models } })
    end
    assert.same({ "config" }, check.field_sources)
    assert.is_true(checked({}))
    assert.is_true(checked({ { name = "a", aliases = { "b" } },
                             { name = "c", aliases = {} } }))
    local ok, err = checked({ { name = "a", aliases = { "b" } },
                              { name = "b", aliases = {} } })
    assert.is_nil(ok)
    assert.matches("'b'", err)
  end)
end)
