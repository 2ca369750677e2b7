-- What Kong's own schema library does not check, see 01-schema_spec.

describe("schema of llm-quota", function()
  local settings = {}

  setup(function()
    package.loaded["kong.db.schema.typedefs"] = {
      protocols_http = { type = "set" },
      no_consumer = { type = "foreign" },
    }
    local schema = require "kong.plugins.llm-quota.schema"
    for _, field in ipairs(schema.fields) do
      for _, setting in ipairs(field.config and field.config.fields or {}) do
        local name, definition = next(setting)
        settings[name] = definition
      end
    end
  end)

  teardown(function()
    package.loaded["kong.db.schema.typedefs"] = nil
    package.loaded["kong.plugins.llm-quota.schema"] = nil
  end)

  it("describes every setting", function()
    for name, definition in pairs(settings) do
      assert.is_string(definition.description, name)
    end
  end)

  it("goes on by what is known, unless it is told not to", function()
    assert.equal(false, settings.fail_closed.default)
    assert.equal(1024, settings.default_max_tokens.default)
    assert.same({ 0, 2147483647 }, settings.default_max_tokens.between)
    assert.is_false(settings.contact.required)
  end)
end)
