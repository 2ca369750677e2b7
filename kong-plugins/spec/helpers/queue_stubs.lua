-- llm-queue's handler without Kong and llm-audit, for specs and benchmarks:
-- what it asks of their modules is what the caller says.

local M = {}


local function nothing() end


-- Loads the handler anew, with the globals as they are, and configures it.
-- @param worker its name
-- @param stubs { of_call: returns what is known of the call, refused: called
-- with it, who refuses and the error, semaphores: instead of ngx.semaphore }
function M.handler(worker, stubs)
  local stubbed = {
    ["kong.plugins.llm-audit.sequence"] = { worker = function()
      return worker
    end },
    ["llm_gateway.early_reading"] = { once = nothing, hold = nothing,
                                      log_once = nothing },
    ["llm_gateway.reading"] = { of_call = stubs.of_call, is_work = function()
      return true
    end },
    ["llm_gateway.refusal"] = { send = stubs.refused },
    ["ngx.semaphore"] = stubs.semaphores,
  }
  for name, stub in pairs(stubbed) do
    package.loaded[name] = stub
  end
  package.loaded["kong.plugins.llm-queue.handler"] = nil

  local handler = require "kong.plugins.llm-queue.handler"
  handler:configure({ {} })

  package.loaded["kong.plugins.llm-queue.handler"] = nil
  for name in pairs(stubbed) do
    package.loaded[name] = nil
  end

  return handler
end


return M
