-- The words and the shape of errors that Kong answers by itself.
--
-- Response headers leave before the first byte of the body is seen, so the
-- new body is made, or at least measured, from what is known then. Where
-- Kong's own words tell more (which way a key was wrong, why a plugin refused
-- the call, until when an operator closed the service), only the frame is made
-- beforehand: the length is reckoned from the old one, and blanks after the
-- JSON fill the rest.
--
-- Invariants: the body is valid JSON whatever the call carries; it has the
-- length that was announced; no key and no header value of the client is
-- repeated in it, only method and path.
--
-- Types and codes are those that OpenAI and Anthropic send for the same
-- status. What they do not have a code for has none here.

local cjson = require "cjson.safe"
local shapes = require "llm_gateway.answers"

local concat = table.concat
local escape = shapes.escape
local floor = math.floor
local format = string.format
local gsub = string.gsub
local ipairs = ipairs
local max = math.max
local pairs = pairs
local rep = string.rep
local sub = string.sub
local tonumber = tonumber
local type = type

local M = {}

-- Kong's error bodies have some hundred bytes. What is larger is no error
-- message, and keeping it until the end would cost memory.
M.MAX_ORIGINAL_BYTES = 65536

local MAX_PATH_CHARS = 120

-- From the longest to the shortest: a used up day matters more than a used up
-- second.
local RATE_PERIODS = { "year", "month", "day", "hour", "minute", "second" }

-- { type, code }
local OPENAI = {
  [401] = { "invalid_request_error", "invalid_api_key" },
  [403] = { "invalid_request_error", "insufficient_permissions" },
  [405] = { "invalid_request_error", "method_not_supported" },
  [413] = { "invalid_request_error", "request_too_large" },
  [429] = { "requests", "rate_limit_exceeded" },
}

local ANTHROPIC = {
  [401] = "authentication_error",
  [403] = "permission_error",
  [404] = "not_found_error",
  [413] = "request_too_large",
  [429] = "rate_limit_error",
  [503] = "overloaded_error",
  [504] = "timeout_error",
}

local MESSAGES = {
  [400] = "The gateway could not read this request",
  [401] = "The gateway did not accept the credentials of this request",
  [403] = "Your key is not allowed to make this call",
  [404] = "The gateway serves nothing under this address",
  [405] = "The gateway does not accept this method here",
  [408] = "The request did not arrive in time",
  [413] = "The request is larger than the gateway accepts; shorten the "
          .. "conversation or send smaller images",
  [429] = "Too many requests; wait before you try again",
  [500] = "The gateway failed to handle this call; if it happens again, give "
          .. "the X-Kong-Request-Id response header to the operator",
  [502] = "The model server could not be reached or closed the connection; "
          .. "it may be restarting, try again in a minute",
  [503] = "The model server is not available at the moment; try again later",
  [504] = "The model server did not answer in time; use streaming for long "
          .. "answers, or try again when the server is less busy",
}


local function request_line(call)
  local path = gsub(call.path, "[^\33-\126]", "?")
  if #path > MAX_PATH_CHARS then
    path = sub(path, 1, MAX_PATH_CHARS) .. "..."
  end

  return call.method .. " " .. path
end


local function duration(seconds)
  if seconds < 120 then
    return format("%d seconds", seconds)
  end

  if seconds < 7200 then
    return format("%d minutes", floor(seconds / 60 + 0.5))
  end

  return format("%d hours", floor(seconds / 3600 + 0.5))
end


-- The headers of Kong's rate-limiting plugin tell which limit was hit.
local function rate_limit_message(headers)
  local limit, used_up_period

  for _, period in ipairs(RATE_PERIODS) do
    if tonumber(headers["x-ratelimit-remaining-" .. period]) == 0 then
      limit = tonumber(headers["x-ratelimit-limit-" .. period])
      used_up_period = period
      break
    end
  end

  local retry_after = tonumber(headers["retry-after"])
  if not limit and not retry_after then
    return nil
  end

  local message = "Rate limit reached"
  if limit then
    message = format("Rate limit reached: %d requests per %s", limit,
                     used_up_period)
  end

  if retry_after then
    message = message .. ". Try again in " .. duration(retry_after)
  end

  return message .. "."
end


-- key-auth says by its words alone what was wrong: when it hides credentials,
-- the header with the key is gone by now.
-- @return messages by Kong's words
local function unauthorized_messages(call)
  -- No "Bearer" with a word behind it: whoever redacts tokens in logs, and the
  -- collector does, would take that word for one.
  local missing = "You did not provide an API key. Send it in the "
                  .. "Authorization header behind the word 'Bearer' (api_key "
                  .. "in the OpenAI SDKs) or as 'X-API-Key: YOUR_KEY'."

  if call.authorization == "bearer" then
    missing = "The gateway did not read the key in your Authorization header. "
              .. "Tell its operator that the pre-function may be missing, or "
              .. "send the key as 'X-API-Key: YOUR_KEY'."

  elseif call.authorization == "other" then
    missing = "The scheme of the Authorization header is not 'Bearer'. Send "
              .. "your key behind that word."
  end

  return {
    ["No API key found in request"] = missing,
    ["Unauthorized"] = "Incorrect API key provided. Check that the key is "
      .. "complete and was issued for this gateway, and that base_url is "
      .. "right.",
    ["Duplicate API key found"] = "More than one API key provided. Send one.",
  }
end


-- @return the message, nil when Kong's own words are to be awaited
local function known_message(call)
  local status = call.status

  if status == 404 and not call.has_route then
    return "Unknown request URL: " .. request_line(call) .. ". Check base_url, "
           .. "which ends in /v1 for the OpenAI SDKs, and that the gateway "
           .. "opens this API."
  end

  if status == 429 then
    local message = rate_limit_message(call.headers)
    if message then
      return message
    end
  end

  -- Kong's words for these are its generic ones.
  if call.source == "error" and MESSAGES[status] then
    return MESSAGES[status] .. "."
  end

  return nil
end


local function default_message(status)
  return MESSAGES[status]
         or status >= 500 and MESSAGES[500]
         or "The gateway did not accept this request"
end


-- @return what stands before and behind the escaped message
local function frame(call)
  local status = call.status
  local kind = OPENAI[status] or {}
  local is_ours = status >= 500
  local is_unknown = status == 404 and not call.has_route

  return shapes.frame(call.is_anthropic, {
    type = kind[1] or is_ours and "server_error" or "invalid_request_error",
    code = is_unknown and "unknown_url" or kind[2],
    anthropic_type = ANTHROPIC[status]
                     or is_ours and "api_error" or "invalid_request_error",
  }, call.request_id)
end


-- Decides what becomes of an error, before its body is seen.
-- @param call table with
--   status, method, path (without query), source ("exit" or "error"),
--   is_anthropic (whether the API answers errors as Anthropic's does),
--   has_route (boolean),
--   authorization (nil, "bearer" or "other": the scheme the client sent),
--   headers (of the response, names in lower case),
--   content_length (of Kong's body, if known), request_id (if known)
-- @return plan with `body`, or a plan for M.finish; `length` is the length of
-- the body to come, nil when it cannot be known; `is_final` says that the SDKs
-- shall not try again by themselves
function M.plan(call)
  -- They would wait for the server's whole read time-out three times, and make
  -- it begin the same long answer three times.
  local is_final = call.status == 504

  local before, after = frame(call)
  local message = known_message(call)
  if message then
    local body = before .. escape(message) .. after
    return { body = body, length = #body, is_final = is_final }
  end

  local lead = escape(default_message(call.status))
  local answers = call.status == 401 and unauthorized_messages(call) or {}
  local length = call.content_length
  if length then
    -- Kong's words, escaped, are shorter than the JSON they came in.
    local longest = #lead + #" ()." + length
    for _, answer in pairs(answers) do
      longest = max(longest, #escape(answer))
    end
    length = #before + longest + #after
  end

  return {
    before = before,
    after = after,
    lead = lead,
    answers = answers,
    length = length,
    is_final = is_final,
  }
end


local function words_of(original)
  local decoded = cjson.decode(original)
  local words = type(decoded) == "table" and decoded.message

  return type(words) == "string" and words ~= "" and words or nil
end


local function is_shaped(original)
  local decoded = cjson.decode(original)

  return type(decoded) == "table" and decoded.error ~= nil
end


-- @param plan what M.plan gave
-- @param original Kong's own body, nil when it is not at hand
-- @return the body to send
function M.finish(plan, original)
  if plan.body then
    return plan.body
  end

  local before, lead, after = plan.before, plan.lead, plan.after
  local body

  if original and is_shaped(original) then
    -- An operator who answers in the SDKs' shape already.
    body = original

  else
    local words = original and words_of(original)
    local answer = words and plan.answers[words]
    if answer then
      body = before .. escape(answer) .. after

    elseif words then
      body = concat({ before, lead, " (", escape(words), ").", after })
    end
  end

  local length = plan.length
  if not body or length and #body > length then
    body = concat({ before, lead, ".", after })
  end

  return length and body .. rep(" ", length - #body) or body
end


return M
