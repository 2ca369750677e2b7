local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
local SNIPPET = here .. "/../../pre-function/bearer.lua"

-- What Kong's sandbox offers and the snippet may use; no require, no io.
local function sandbox(kong, over)
  local ngx = {
    shared = {
      llm_gateway = over and {
        get = function(_, key)
          return over[key]
        end,
      },
    },
    var = { remote_addr = "192.0.2.7" },
    now = function()
      return 1700000045.5
    end,
  }

  return { kong = kong, ngx = ngx, ipairs = ipairs, type = type, math = math,
           tostring = tostring }
end


-- Runs the snippet on a request, as nginx and Kong would show it.
-- @param headers values by lower case name: a string, or a list if repeated
-- @param over what llm-audit notes in the shared dict; nil: there is no dict
-- @return the headers that go on to key-auth and the model server, and what
-- the snippet answered, if it did
local function run(headers, over)
  local answer
  local function values_of(name)
    return headers[name:lower()]
  end

  local kong = {
    request = {
      get_header = function(name)
        local value = values_of(name)
        return type(value) == "table" and value[1] or value
      end,
      get_headers = function()
        return setmetatable({}, { __index = function(_, name)
          return values_of(name)
        end })
      end,
    },
    service = {
      request = {
        set_header = function(name, value)
          headers[name:lower()] = value
        end,
        clear_header = function(name)
          headers[name:lower()] = nil
        end,
      },
    },
  }

  kong.response = {
    exit = function(status, body, given)
      answer = { status = status, body = body, headers = given }
    end,
  }

  local chunk = assert(loadfile(SNIPPET))
  setfenv(chunk, sandbox(kong, over))
  assert.is_nil(chunk(), "a result would be taken for the phase function")

  return headers, answer
end


describe("bearer.lua", function()
  describe("takes the key and removes Authorization", function()
    for value, key in pairs({
      ["Bearer sk-1"] = "sk-1",
      ["bearer sk-1"] = "sk-1",
      ["BEARER sk-1"] = "sk-1",
      ["bEaReR sk-1"] = "sk-1",
      ["Bearer    sk-1"] = "sk-1",
      ["Bearer\tsk-1"] = "sk-1",
      ["  Bearer sk-1"] = "sk-1",
      ["Bearer sk-1  "] = "sk-1",
      [" \t Bearer \t sk-1 \t "] = "sk-1",
      -- only the leading scheme is stripped
      ["Bearer Bearer sk-1"] = "Bearer sk-1",
      ["Bearer sk-Bearer 1"] = "sk-Bearer 1",
      ["Bearer bearer"] = "bearer",
      -- a key that key-auth will refuse is still a key
      ["Bearer two words"] = "two words",
      ["Bearer sk%d+-."] = "sk%d+-.",
    }) do
      it(string.format("%q", value), function()
        local headers = run({ authorization = value })
        assert.equal(key, headers["x-api-key"])
        assert.is_nil(headers.authorization)
      end)
    end
  end)

  describe("leaves other schemes alone", function()
    for _, value in ipairs({
      "Basic dXNlcjpwYXNz",
      "Digest username=\"Bearer\"",
      "sk-1",
      "Bearersk-1",
      "Bearer:sk-1",
      "Basic Bearer sk-1",
      "XBearer sk-1",
      "Beare r sk-1",
    }) do
      it(string.format("%q", value), function()
        local headers = run({ authorization = value })
        assert.is_nil(headers["x-api-key"])
        assert.equal(value, headers.authorization)
      end)

      it(string.format("%q beside X-API-Key", value), function()
        local headers = run({ authorization = value, ["x-api-key"] = "sk-2" })
        assert.equal("sk-2", headers["x-api-key"])
        assert.equal(value, headers.authorization)
      end)
    end
  end)

  it("does nothing without Authorization", function()
    assert.same({}, run({}))
    assert.same({ ["x-api-key"] = "sk-2" }, run({ ["x-api-key"] = "sk-2" }))
  end)

  it("lets Bearer win over X-API-Key", function()
    local headers = run({
      authorization = "Bearer sk-1",
      ["x-api-key"] = "sk-2",
    })
    assert.same({ ["x-api-key"] = "sk-1" }, headers)

    -- key-auth refuses a repeated key; Bearer replaces both
    headers = run({
      authorization = "Bearer sk-1",
      ["x-api-key"] = { "sk-2", "sk-3" },
    })
    assert.same({ ["x-api-key"] = "sk-1" }, headers)
  end)

  it("takes no key from an empty Bearer and keeps X-API-Key", function()
    for _, value in ipairs({ "Bearer", "Bearer ", "bearer \t ", " Bearer" }) do
      assert.same({}, run({ authorization = value }))
      assert.same({ ["x-api-key"] = "sk-2" },
                  run({ authorization = value, ["x-api-key"] = "sk-2" }))
    end
  end)

  it("finds the key in a repeated Authorization header", function()
    for _, values in ipairs({
      { "Bearer sk-1", "Basic dXNlcjpwYXNz" },
      { "Basic dXNlcjpwYXNz", "Bearer sk-1" },
      { "Bearer ", "Bearer sk-1" },
      { "Bearer sk-1", "Bearer sk-9" },
      { "Basic dXNlcjpwYXNz", "Bearer ", "bearer sk-1" },
    }) do
      assert.same({ ["x-api-key"] = "sk-1" }, run({ authorization = values }))
    end
  end)

  it("sends no repeated header with a Bearer scheme on", function()
    assert.same({}, run({ authorization = { "Basic YTpi", "Bearer" } }))
  end)

  it("leaves a repeated header of other schemes alone", function()
    local headers = run({ authorization = { "Basic YTpi", "Digest x" } })
    assert.same({ "Basic YTpi", "Digest x" }, headers.authorization)
    assert.is_nil(headers["x-api-key"])
  end)

  it("reads a hostile header in one pass", function()
    local started = os.clock()
    for _, value in ipairs({
      ("\t "):rep(50000),
      "Bearer" .. (" "):rep(100000),
      "Bearer a" .. (" "):rep(100000) .. "b",
      "Bearer" .. (" "):rep(100000) .. "a" .. (" "):rep(100000),
    }) do
      run({ authorization = value })
    end
    assert.is_true(os.clock() - started < 1)
  end)

  describe("from an address with too many failed calls", function()
    local over = { ["over:192.0.2.7"] = true }

    it("refuses a call without a key until the minute is over", function()
      local _, answer = run({}, over)
      assert.equal(429, answer.status)
      -- 1700000045 is 5 seconds into a minute
      assert.equal("55", answer.headers["Retry-After"])
      assert.equal("false", answer.headers["X-Should-Retry"])
      _, answer = run({ authorization = "Basic dXNlcjpwYXNz" }, over)
      assert.equal(429, answer.status)
    end)

    it("leaves every key to key-auth", function()
      for _, headers in ipairs({
        { authorization = "Bearer sk-1" },
        { ["x-api-key"] = "sk-1" },
        { authorization = { "Basic dXNlcjpwYXNz", "Bearer sk-1" } },
      }) do
        local _, answer = run(headers, over)
        assert.is_nil(answer)
      end
    end)

    it("lets other addresses alone", function()
      local _, answer = run({}, { ["over:192.0.2.8"] = true })
      assert.is_nil(answer)
    end)
  end)
end)
