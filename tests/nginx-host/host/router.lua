--- Finds the route of a call, as Kong's traditional_compatible router does.
--
-- A route matches when each kind of condition it has (methods, hosts, paths)
-- does. More kinds of conditions win over fewer, regex paths over prefixes, a
-- higher regex_priority over a lower one, a longer prefix over a shorter one, the
-- older route over the newer one. Regex paths (`~/…`) are anchored at the start,
-- and their `$` is the very end of the path, as in the Rust library Kong uses
-- (PCRE's would also stop before a last line feed).
--
-- Not looked at: headers, snis, sources, destinations.

local uri = require "host.uri"


local router = {}


local function set_of(list)
  if not list or #list == 0 then
    return nil
  end
  local set = {}
  for _, item in ipairs(list) do
    set[item:lower()] = true
  end
  return set
end


local function anchored(path)
  local pattern = path:sub(2)
  -- A dollar sign at the end, unless it is escaped.
  local body, backslashes = pattern:match("^(.-(\\*))%$$")
  if body and #backslashes % 2 == 0 then
    pattern = body .. "\\z"
  end
  return "^(?:" .. pattern .. ")"
end


local function candidates_of(route, service)
  local methods, hosts = set_of(route.methods), set_of(route.hosts)
  local paths = route.paths
  local weight = (methods and 1 or 0) + (hosts and 1 or 0)
  if not paths or #paths == 0 then
    return { { route = route, service = service, methods = methods, hosts = hosts,
               weight = weight, length = 0 } }
  end
  local candidates = {}
  for _, path in ipairs(paths) do
    local is_regex = path:sub(1, 1) == "~"
    candidates[#candidates + 1] = {
      route = route,
      service = service,
      methods = methods,
      hosts = hosts,
      weight = weight + 1,
      regex = is_regex and anchored(path) or nil,
      prefix = not is_regex and path or nil,
      length = is_regex and 0 or #path,
    }
  end
  return candidates
end


local function comes_first(a, b)
  if a.weight ~= b.weight then
    return a.weight > b.weight
  elseif (a.regex ~= nil) ~= (b.regex ~= nil) then
    return a.regex ~= nil
  end
  local a_priority, b_priority = a.route.regex_priority or 0, b.route.regex_priority or 0
  if a.regex and a_priority ~= b_priority then
    return a_priority > b_priority
  elseif a.length ~= b.length then
    return a.length > b.length
  elseif a.route.created_at ~= b.route.created_at then
    return a.route.created_at < b.route.created_at
  end
  return a.route.id < b.route.id
end


--- The router for this state of the document.
function router.build(document)
  local candidates = {}
  for _, route in pairs(document.routes) do
    local service = route.service and document.services[route.service.id]
    if not service or service.enabled ~= false then
      for _, candidate in ipairs(candidates_of(route, service)) do
        candidates[#candidates + 1] = candidate
      end
    end
  end
  table.sort(candidates, comes_first)
  return candidates
end


--- The part of the path that the route's path matched; nil when it does not.
local function matched_path(candidate, path)
  if candidate.regex then
    local from, to = ngx.re.find(path, candidate.regex, "jo")
    return from and path:sub(from, to)
  elseif candidate.prefix then
    return path:sub(1, #candidate.prefix) == candidate.prefix and candidate.prefix or nil
  end
  return ""
end


-- The service's path, then what is left of the request's.
local function upstream_path(candidate, path, matched)
  local base = candidate.service and candidate.service.path or "/"
  local rest = path
  if candidate.route.strip_path then
    rest = path:sub(#matched + 1)
    if rest == "" then
      -- A stripped path leaves the service's own, with the slash that was asked for.
      if base == "/" then
        return "/"
      end
      return path:sub(-1) == "/" and #path > 1 and base:gsub("/?$", "/") or base:gsub("/$", "")
    end
  elseif path == "/" and base ~= "/" then
    return base
  end
  return base:gsub("/$", "") .. "/" .. rest:gsub("^/", "")
end


--- route, service, upstream path, matched prefix; nil when nothing matches.
function router.match(candidates, method, host_name, request_uri)
  local path = uri.normalize(request_uri:match("^[^?]*"))
  for _, candidate in ipairs(candidates) do
    if (not candidate.methods or candidate.methods[method:lower()])
       and (not candidate.hosts or candidate.hosts[(host_name or ""):lower()])
    then
      local matched = matched_path(candidate, path)
      if matched then
        return {
          route = candidate.route,
          service = candidate.service,
          upstream_uri = uri.escape((upstream_path(candidate, path, matched))),
          prefix = candidate.route.strip_path and matched or nil,
        }
      end
    end
  end
end


return router
