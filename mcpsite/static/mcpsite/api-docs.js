"use strict";

const place = document.getElementById("api-docs");

// Redoc shows a picture from its makers' server; the site's policy forbids to load it, and this spares the try.
function keepToThisSite() {
  const set = HTMLImageElement.prototype.setAttribute;
  HTMLImageElement.prototype.setAttribute = function (name, value) {
    if (name !== "src" || new URL(value, location).origin === location.origin) {
      set.call(this, name, value);
    }
  };
}

function read() {
  keepToThisSite();
  Redoc.init(
    place.dataset.schema,
    {
      disableSearch: true, // it runs in a worker made of text, which the site's policy forbids
      hideDownloadButtons: true,
      pathInMiddlePanel: true,
      scrollYOffset: ".bar",
      theme: { colors: { primary: { main: "#00786f" } }, typography: { fontFamily: "system-ui, sans-serif" } },
    },
    place,
  );
}

function tryOut() {
  document.documentElement.classList.toggle("dark-mode", matchMedia("(prefers-color-scheme: dark)").matches);
  SwaggerUIBundle({
    domNode: place,
    url: place.dataset.schema,
    deepLinking: true,
    docExpansion: "none",
    filter: true,
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis],
    validatorUrl: null, // would send the description to a service outside
    requestInterceptor: (request) => {
      if (request.method && request.method !== "GET") {
        request.headers["X-CSRFToken"] = place.dataset.csrf;
      }
      return request;
    },
  });
}

if ("reading" in place.dataset) {
  read();
} else {
  tryOut();
}
