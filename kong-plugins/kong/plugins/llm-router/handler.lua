-- Chooses the model server of a call: by the model that the request names, and
-- by who asks. Tells callers which models there are for them.
--
-- Invariants
--   Without models nothing is done: every call goes to the service's address.
--   A call that names a model reaches a server of that model, or none. What
--   cannot be read in one way only is refused, whatever llm-audit's
--   `strict_requests` says: it would reach a server on somebody's word.
--   An error in here fails the call (Kong answers 500), it does not send it
--   somewhere else.
--   Of a body nothing is changed but the values of the outermost `model`.
--
-- Not here: headers that no client may set (pre-function), balancing and health
-- of servers (Kong), the entry (llm-audit).

local answers = require "llm_gateway.answers"
local chosen = require "kong.plugins.llm-router.model_asked"
local early_reading = require "llm_gateway.early_reading"
local forwarded = require "llm_gateway.forwarded"
local models = require "llm_gateway.models"
local reading = require "llm_gateway.reading"
local refusal = require "llm_gateway.refusal"
local response_servers = require "llm_gateway.response_servers"
local route = require "llm_gateway.route"
local seldom = require "llm_gateway.seldom"

local char = string.char
local gsub = string.gsub
local kong = kong
local match = string.match
local ngx = ngx
local setmetatable = setmetatable
local tonumber = tonumber
local tostring = tostring

-- Behind key-auth (1250) and acl (950), in front of rate-limiting (910).
local PRIORITY = 920

local LlmRouter = {
  PRIORITY = PRIORITY,
  VERSION = "0.2.0",
}


-- Settings are one table until they change.
local indexes = setmetatable({}, { __mode = "k" })

local function index_of(conf)
  local index = indexes[conf]
  if not index then
    index = models.index(conf.models)
    indexes[conf] = index
  end

  return index
end


-- Kong keeps one table of a consumer until something of it changes.
local callers = setmetatable({}, { __mode = "k" })

-- @return what decides over the models of who calls
local function caller_of(consumer)
  if not consumer then
    return models.caller(nil)
  end

  local caller = callers[consumer]
  if not caller then
    caller = models.caller(consumer)
    callers[consumer] = caller
  end

  return caller
end


local answer = refusal.answer

local function refuse(asked, err)
  return refusal.send(asked, "router", err)
end


-- --- lists of models --------------------------------------------------------

local function unescape(text)
  return (gsub(text, "%%(%x%x)", function(hex)
    return char(tonumber(hex, 16))
  end))
end


local function answer_models(asked, index, caller)
  local method = kong.request.get_method()
  -- Both SDKs ask under the same path.
  asked.is_anthropic = kong.request.get_header("anthropic-version") ~= nil

  if method ~= "GET" and method ~= "HEAD" then
    return refuse(asked, {
      status = 405,
      message = "The list of models can only be read.",
      type = "invalid_request_error",
      code = "method_not_supported",
      anthropic_type = "invalid_request_error",
      headers = { Allow = "GET, HEAD" },
    })
  end

  -- A name may have slashes.
  local name = match(forwarded.path(), "/v1/models/(.+)$")
  if not name then
    return answer(200, answers.models(asked.is_anthropic,
                                      models.all(index, caller)))
  end

  name = unescape(name)
  local model = models.find(index, name, caller)
  if not model then
    return refuse(asked, answers.model_not_found(name))
  end

  return answer(200, answers.model(asked.is_anthropic, model))
end


-- --- routing ----------------------------------------------------------------

-- An upstream that is missing fails every call for its model.
local complain = seldom.new(function(line)
  kong.log.err(line)
end, ngx.now)


local function lead(asked, model)
  local ok, err = route.to_upstream(asked, model)
  if ok then
    return
  end

  complain("model '" .. model.name .. "': " .. tostring(err))

  return refuse(asked, {
    status = 503,
    message = "The model server is not available at the moment; try again "
              .. "later.",
    type = "server_error",
    anthropic_type = "overloaded_error",
  })
end


local function route_by_model(asked, index, caller)
  local name, err = chosen.read(asked)
  if err then
    return refuse(asked, err)
  end
  if not name then
    return nil
  end

  local model = models.find(index, name, caller)
  if not model then
    return refuse(asked, answers.model_not_found(name))
  end

  err = chosen.rename(asked, name, model.served_as)
  if err then
    return refuse(asked, err)
  end

  -- What is to be continued is in the memory of the server that made it.
  local address, of_model =
    response_servers.of(asked.found.previous_response_id)
  if of_model == model.name then
    return route.to_server(asked, model, address)
  end

  return lead(asked, model)
end


-- A call for a stored response, which one server has. Whether the caller may
-- have it is for llm-audit to say.
local function route_to_maker(asked, index, caller, id)
  local address, name = response_servers.of(id)
  local model = name and models.find(index, name, caller)
  if model then
    route.to_server(asked, model, address)
  end
end


function LlmRouter.access(_, conf)
  if not conf.models or not conf.models[1] then
    return nil
  end

  local asked = reading.of_call()
  local index = index_of(conf)
  local caller = caller_of(kong.client.get_consumer())

  if reading.api_of(asked) == "models" then
    return answer_models(asked, index, caller)
  end

  -- vLLM names its answer after it, and a client may not.
  kong.service.request.set_header("X-Request-Id", ngx.var.kong_request_id)

  local id = asked.api == "responses"
             and match(forwarded.path(), "/v1/responses/([^/]+)")
  if id then
    return route_to_maker(asked, index, caller, id)
  end

  return route_by_model(asked, index, caller)
end


-- The call has ended; llm-audit says so, too, where Kong came to it.
function LlmRouter.log(_, conf)
  if not conf.models or not conf.models[1] then
    return
  end

  early_reading.log(reading.of_call())
end


return LlmRouter
