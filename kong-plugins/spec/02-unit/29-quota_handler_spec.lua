-- What llm-quota tells and says beside its calls, which tests/nginx-host has.

local shared_dict = require "spec.helpers.shared_dict"
local sync_members = require "llm_gateway.sync_members"

-- Modules that know nginx or Kong.
local MODULES = {
  "kong.plugins.llm-audit.sequence", "kong.plugins.llm-quota.handler",
  "llm_gateway.early_reading", "llm_gateway.forwarded", "llm_gateway.reading",
  "llm_gateway.refusal", "llm_gateway.request_body",
}


describe("llm-quota", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local handler, said, timers, time, dict

  before_each(function()
    said, timers, time = {}, 0, 1795801679
    dict = shared_dict.new()
    _G.ngx = {
      now = function()
        return time
      end,
      shared = { llm_quota = dict },
      worker = { pid = function()
        return 4711
      end },
    }
    _G.kong = {
      log = { err = function(...)
        said[#said + 1] = table.concat({ ... })
      end },
      timer = { every = function()
        timers = timers + 1
      end },
    }
    for _, name in ipairs(MODULES) do
      package.loaded[name] = nil
    end
    handler = require "kong.plugins.llm-quota.handler"
  end)

  teardown(function()
    sync_members.set("quota", nil)
    _G.kong, _G.ngx = kong_before, ngx_before
    for _, name in ipairs(MODULES) do
      package.loaded[name] = nil
    end
  end)

  it("does nothing as long as it is not configured", function()
    handler:configure(nil)
    handler:configure({})
    assert.is_nil(sync_members.all().quota)
    assert.equal(0, timers)
  end)

  it("asks as long as it is configured", function()
    handler:configure({ {} })
    handler:configure({ {}, {} })
    assert.same({}, sync_members.all().quota.ask(function() end))
    assert.equal(1, timers)
    handler:configure(nil)
    assert.is_nil(sync_members.all().quota)
  end)

  it("says that its dict is missing", function()
    ngx.shared = {}
    handler:configure({ {} })
    assert.matches("there is no lua_shared_dict llm_quota", said[1])
    assert.is_nil(sync_members.all().quota)
  end)

  it("tells how much waits, and says what found no room", function()
    handler:configure({ {} })
    local member = sync_members.all().quota
    local gauges = { in_flight = 1 }
    dict:safe_set("lost", 3)
    dict:safe_set("lo:1", 5)
    dict:safe_set("hi:1", 6)
    member.note_gauges(gauges)
    assert.same({ in_flight = 1, quota_pending = 2, quota_refused = 0,
                  quota_lost = 3, quota_left_out = 0 }, gauges)
    assert.matches("^3 amounts found no room", said[1])

    dict:safe_set("lost", 5)
    member.note_gauges(gauges)
    assert.equal(1, #said)
    time = time + 60
    member.note_gauges(gauges)
    assert.matches("^2 amounts found no room", said[2])
    member.note_gauges(gauges)
    assert.equal(2, #said)
  end)

  it("says which limits hold nobody back", function()
    handler:configure({ {} })
    local member = sync_members.all().quota
    local told = { version = "1", full = true, limits = { { id = "x" } } }
    assert.is_true(member.learn(told, {}))
    assert.matches("^1 limits or prices of the collector are none", said[1])
    told.limits = {}
    assert.is_true(member.learn(told, {}))
    assert.equal(1, #said)
    local ok, err = member.learn({ version = "2" }, { version = "0" })
    assert.is_nil(ok)
    assert.matches("another version", err)
  end)
end)
