-- What surrounds every test that leads calls through the handler: a gateway of
-- its own with the default settings, and the globals as they were afterwards.
-- An error that a test does not expect, and clear, fails it.

-- What only spec files have as globals.
local assert = require "luassert"
local busted = require "busted"
local gateway = require "spec.helpers.gateway"


-- Call it inside describe.
-- @param give called with the gateway before each test
return function(give)
  local kong_before, ngx_before = _G.kong, _G.ngx

  busted.before_each(function()
    give(gateway.new())
  end)

  busted.after_each(function()
    assert.same({}, gateway.latest.errors)
  end)

  busted.teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)
end
