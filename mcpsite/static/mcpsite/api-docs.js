"use strict";

const place = document.getElementById("api-docs");

// Redoc shows a picture from its makers' server; the site's policy forbids to load it, and this spares the try.
function keepToThisSite() {
  const isOurs = (value) => ["data:", location.origin].some((start) => new URL(value, location).href.startsWith(start));
  const images = HTMLImageElement.prototype;
  const { get, set } = Object.getOwnPropertyDescriptor(images, "src");
  const setAttribute = images.setAttribute;
  Object.defineProperty(images, "src", {
    get,
    set(value) {
      if (isOurs(value)) {
        set.call(this, value);
      }
    },
  });
  images.setAttribute = function (name, value) {
    if (name !== "src" || isOurs(value)) {
      setAttribute.call(this, name, value);
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
