// Show the OpenAPI document in Swagger UI, which calls the API with the signed-in user's key.

import { get, key } from "./api.js";

const sign = (request) => {
  if (key.get()) request.headers.Authorization = `Bearer ${key.get()}`;
  return request;
};

try {
  const spec = await get("/openapi.json");
  window.SwaggerUIBundle({
    spec,
    domNode: document.getElementById("document"),
    requestInterceptor: sign,
    validatorUrl: null,
  });
} catch (problem) {
  document.getElementById("notice").textContent =
    problem.status === 401
      ? "The API documentation requires a key: first sign in on the dashboard, in this tab."
      : problem.message;
}
