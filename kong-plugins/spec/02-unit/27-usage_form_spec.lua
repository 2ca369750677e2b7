local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
local SNIPPET = here .. "/../../pre-function/usage_form.lua"

-- Runs the snippet in a phase of a call, as Kong's sandbox would.
-- @param call { phase, method, length, form, status }
-- @return what it did: headers for the service, body, answer, Refresh
local function run(call)
  local done = { headers = {} }
  local kong = {
    request = {
      get_method = function()
        return call.method or "POST"
      end,
      get_header = function(name)
        assert.equal("Content-Length", name)
        return call.length
      end,
      get_body = function(kind)
        assert.equal("application/x-www-form-urlencoded", kind)
        done.was_read = true
        return call.form
      end,
    },
    response = {
      exit = function(status)
        error({ status = status })
      end,
      get_status = function()
        return call.status
      end,
      set_header = function(name, value)
        done.refresh = name == "Refresh" and value or nil
      end,
    },
    service = { request = {
      set_header = function(name, value)
        done.headers[name] = value
      end,
      set_raw_body = function(body)
        done.body = body
      end,
    } },
  }
  local ngx = {
    get_phase = function()
      return call.phase or "access"
    end,
  }

  local chunk = assert(loadfile(SNIPPET))
  setfenv(chunk, { kong = kong, ngx = ngx, tonumber = tonumber, type = type })
  local ok, result = pcall(chunk)
  if not ok then
    assert(type(result) == "table", result)
    done.answer = result.status
  else
    assert.is_nil(result, "a result would be taken for the phase function")
  end

  return done
end


describe("usage_form.lua", function()
  it("hands on the key of a form, and nothing of its body", function()
    local done = run({ length = "20", form = { key = " sk-1\n", more = "x" } })
    assert.same({ Authorization = "Bearer sk-1" }, done.headers)
    assert.equal("", done.body)
  end)

  it("lets forms without one key come to key-auth without any", function()
    for _, form in ipairs({ {}, { key = true }, { key = "" }, { key = " " },
                            { key = { "a", "b" } }, { other = "sk-1" } }) do
      local done = run({ length = "20", form = form })
      assert.same({}, done.headers)
      assert.equal("", done.body)
    end
    assert.equal("", run({ length = "20" }).body)
  end)

  it("reads nothing that is no such form", function()
    for _, length in ipairs({ "4097", "99999999", "x" }) do
      local done = run({ length = length, form = { key = "sk-1" } })
      assert.equal(413, done.answer)
      assert.is_nil(done.was_read)
    end
    assert.equal(413, run({ form = { key = "sk-1" } }).answer)
    assert.is_nil(run({ length = "4096", form = {} }).answer)
  end)

  it("leaves other requests as they are", function()
    assert.same({ headers = {} }, run({ method = "GET", length = "20" }))
  end)

  it("sends a browser back whose key is wrong", function()
    local answer = { phase = "header_filter", status = 401 }
    assert.equal("0; url=usage?refused", run(answer).refresh)
    answer.status = 200
    assert.is_nil(run(answer).refresh)
    assert.is_nil(run({ phase = "header_filter", status = 401,
                        method = "GET" }).refresh)
  end)
end)
