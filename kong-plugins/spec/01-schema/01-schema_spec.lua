-- Kong's own schema library is not at hand here. What is checked is what it
-- does not check: that every setting explains itself, and has a default.

describe("schema", function()
  local schema, settings

  setup(function()
    package.loaded["kong.db.schema.typedefs"] = {
      protocols_http = { type = "set" },
    }
    schema = require "kong.plugins.llm-audit.schema"
    settings = {}
    for _, field in ipairs(schema.fields) do
      if field.config then
        for _, setting in ipairs(field.config.fields) do
          local name, definition = next(setting)
          assert.is_nil(next(setting, name))
          settings[name] = definition
        end
      end
    end
  end)

  teardown(function()
    package.loaded["kong.db.schema.typedefs"] = nil
    package.loaded["kong.plugins.llm-audit.schema"] = nil
  end)

  it("has the plugin's name", function()
    assert.equal("llm-audit", schema.name)
  end)

  it("has the settings and defaults that are documented", function()
    local defaults = {}
    for name, definition in pairs(settings) do
      defaults[name] = definition.default
    end
    assert.same({
      max_request_body_size = 1048576,
      upload_room_mb = 0,
      body_seconds = 60,
      max_response_body_size = 1048576,
      capture = "full",
      include_usage = true,
      strict_requests = true,
      openai_errors = true,
      anonymous_per_minute = 60,
      refused_per_minute = 60,
    }, defaults)

    local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
    local readme = assert(io.open(here .. "/../../README.md")):read("*a")
    for name, default in pairs(defaults) do
      local documented = "| `" .. name .. "` | `" .. tostring(default) .. "` |"
      assert.is_truthy(readme:find(documented, 1, true), documented)
    end
  end)

  it("describes every setting in whole sentences", function()
    for name, definition in pairs(settings) do
      assert.is_string(definition.description, name)
      assert.matches("^%u.+%.$", definition.description)
      assert.is_true(#definition.description > 40, name)
      assert.is_nil(definition.description:find("  ", 1, true))
    end
  end)

  it("is strict about types and bounds", function()
    for name, definition in pairs(settings) do
      assert.is_true(definition.required, name)
      assert.equal(({ number = "integer" })[type(definition.default)]
                   or type(definition.default), definition.type)
    end
    assert.same({ "full", "metadata", "none" }, settings.capture.one_of)
    assert.equal(0, settings.max_request_body_size.between[1])
    assert.equal(0, settings.max_response_body_size.between[1])
  end)

  it("may be scoped to consumers, routes and services", function()
    for _, field in ipairs(schema.fields) do
      assert.is_nil(field.consumer)
      assert.is_nil(field.route)
      assert.is_nil(field.service)
    end
  end)
end)
