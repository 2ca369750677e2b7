-- Workers of one node that share the counters of limits, and a collector's
-- answers for them.

local cjson = require "cjson.safe"
local counts = require "kong.plugins.llm-quota.counts"
local ledgers = require "kong.plugins.llm-quota.ledger"
local shared_dict = require "spec.helpers.shared_dict"

local M = {}

-- 2026-11-27 00:00 UTC, the day of all calls here.
M.DAY = 1795737600
M.HOUR = M.DAY + 36000
M.NOW = M.HOUR + 60


-- @param room the most keys in the dict, nil for any number
function M.new(room)
  local node = setmetatable({ time = M.NOW }, { __index = M })
  node.dict = shared_dict.new({ room = room, now = function()
    return node.time
  end })

  return node
end


-- @return the ledger of one worker
function M:worker(name)
  return ledgers.new(self.dict, {
    worker = function()
      return name
    end,
    now = function()
      return self.time
    end,
    decode = cjson.decode,
  })
end


-- @return an answer that tells these limits; others have the form of
-- { id, subject, name, unit, per, amount, mode }
function M.full(limits, changes)
  local told = { version = "v1", revision = "r1", full = true, limits = {},
                 windows = { hour = { M.HOUR, M.HOUR + 3600 },
                             day = { M.DAY, M.DAY + 86400 } },
                 prices = {}, used = {}, counted = {} }
  for i, limit in ipairs(limits) do
    told.limits[i] = { id = limit[1], subject = limit[2], name = limit[3],
                       unit = limit[4], per = limit[5], amount = limit[6],
                       mode = limit[7], models = "%", currency = "CNY" }
  end
  for name, value in pairs(changes or {}) do
    told[name] = value
  end

  return told
end


-- Applies an answer, to what is asked now if it is to nothing else.
function M.tell(_, ledger, told, asked)
  return counts.apply(ledger, told, asked or counts.ask(ledger, function()
    return true
  end), cjson.encode)
end


-- A call of alice that may take 100 tokens.
function M.call(changes)
  local call = { user = "alice", team = "ml", model = "m", at = M.NOW,
                 calls = 1, prompt = 40, completion = 60 }
  for name, value in pairs(changes or {}) do
    call[name] = value
  end

  return call
end


-- @return the counter of a limit
function M:counter(id, start, subject)
  return self.dict:get("t:" .. id .. ":" .. start .. ":" .. subject)
end


return M
