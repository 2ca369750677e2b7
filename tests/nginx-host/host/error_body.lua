--- The bodies of answers that Kong makes itself.
--
-- Their kind follows the client's Accept header, JSON when it says nothing:
-- `{"message":…,"request_id":…}` over four lines, as recorded in
-- tests/fixtures/kong/entries/kong-*.json.

local error_body = {}


local TEMPLATES = {
  ["application/json; charset=utf-8"] =
    '{\n  "message":"%s",\n  "request_id":"%s"\n}',
  ["text/plain; charset=utf-8"] =
    "%s\nrequest_id: %s\n",
  ["text/html; charset=utf-8"] =
    "<!doctype html>\n<html>\n  <head>\n    <meta charset=\"utf-8\">\n"
    .. "    <title>Error</title>\n  </head>\n  <body>\n    <h1>Error</h1>\n"
    .. "    <p>%s.</p>\n    <p>request_id: %s</p>\n  </body>\n</html>\n",
  ["application/xml; charset=utf-8"] =
    '<?xml version="1.0" encoding="UTF-8"?>\n<error>\n  <message>%s</message>\n'
    .. "  <requestid>%s</requestid>\n</error>\n",
}

local JSON = "application/json; charset=utf-8"

local KINDS = {
  ["*/*"] = JSON,
  ["application/*"] = JSON,
  ["application/json"] = JSON,
  ["text/*"] = "text/html; charset=utf-8",
  ["text/html"] = "text/html; charset=utf-8",
  ["text/plain"] = "text/plain; charset=utf-8",
  ["application/xml"] = "application/xml; charset=utf-8",
}


--- The media type for an Accept header: the first of the highest quality that
--- is known.
function error_body.content_type(accept)
  if type(accept) == "table" then
    accept = table.concat(accept, ",")
  end
  local best, best_quality = JSON, 0
  for item in (accept or ""):gmatch("[^,]+") do
    local media_type = item:match("^%s*([^;%s]+)")
    local quality = tonumber(item:match(";%s*q=([%d.]+)") or 1) or 0
    if media_type and quality > best_quality then
      best_quality = quality
      best = KINDS[media_type:lower()] or best
    end
  end
  return best
end


function error_body.render(content_type, message, request_id)
  return (TEMPLATES[content_type] or TEMPLATES[JSON]):format(message, request_id)
end


local MESSAGES = {
  [400] = "Bad request",
  [401] = "Unauthorized",
  [403] = "Forbidden",
  [404] = "Not found",
  [405] = "Method not allowed",
  [408] = "Request timeout",
  [411] = "Length required",
  [412] = "Precondition failed",
  [413] = "Payload too large",
  [414] = "URI too long",
  [417] = "Expectation failed",
  [426] = "Upgrade required",
  [429] = "Too many requests",
  [494] = "Request header or cookie too large",
  [500] = "An unexpected error occurred",
  [502] = "An invalid response was received from the upstream server",
  [503] = "The upstream server is currently unavailable",
  [504] = "The upstream server is timing out",
}

function error_body.message(status)
  return MESSAGES[status] or ("The upstream server responded with %d"):format(status)
end


return error_body
