"use strict";
// Splats (`makeSplats`) as pixels of a canvas, by WebGL 2.

const SPLAT_VERTEX = `#version 300 es
layout(location = 0) in vec4 box;
layout(location = 1) in vec3 conic;
layout(location = 2) in vec4 color;
uniform vec2 size;
out vec2 offset;
flat out vec3 splatConic;
flat out vec4 splatColor;
void main() {
  offset = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0) * box.zw;
  splatConic = conic;
  splatColor = color;
  vec2 place = (box.xy + offset) / size * 2.0 - 1.0;
  gl_Position = vec4(place.x, -place.y, 0.0, 1.0);
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 offset;
flat in vec3 splatConic;
flat in vec4 splatColor;
out vec4 pixel;
void main() {
  float power = 0.5 * (splatConic.x * offset.x * offset.x + splatConic.z * offset.y * offset.y) +
    splatConic.y * offset.x * offset.y;
  float alpha = min(splatColor.a * exp(-power), 0.99);
  if (power < 0.0 || alpha < 1.0 / 255.0) discard;
  pixel = vec4(splatColor.rgb * alpha, alpha);
}`;

const SCREEN_VERTEX = `#version 300 es
void main() {
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0);
}`;

const SCREEN_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D image;
out vec4 pixel;
void main() {
  pixel = vec4(texelFetch(image, ivec2(gl_FragCoord.xy), 0).rgb, 1.0);
}`;

class Screen {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.gl = gl, this.canvas = canvas;
    // Blended in 16-bit floats: in bytes, faint splats would round away.
    this.format = gl.getExtension("EXT_color_buffer_float") ? gl.RGBA16F : gl.RGBA8;
    this.program = this.link(SPLAT_VERTEX, SPLAT_FRAGMENT);
    this.screenProgram = this.link(SCREEN_VERTEX, SCREEN_FRAGMENT);
    this.size = gl.getUniformLocation(this.program, "size");
    this.framebuffer = gl.createFramebuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    this.attributes = gl.createVertexArray();
    gl.bindVertexArray(this.attributes);
    for (const [location, width, start] of [[0, 4, 0], [1, 3, 4], [2, 4, 7]]) {
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, width, gl.FLOAT, false, 4 * ROW, 4 * start);
      gl.vertexAttribDivisor(location, 1);
    }
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  link(...sources) {
    const { gl } = this, program = gl.createProgram();
    sources.forEach((source, i) => {
      const shader = gl.createShader(i ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    });
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return program;
  }

  resize(width, height) {
    const { gl, canvas } = this;
    if (this.image && canvas.width === width && canvas.height === height) return;
    canvas.width = width, canvas.height = height;
    gl.deleteTexture(this.image);
    this.image = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.image);
    gl.texStorage2D(gl.TEXTURE_2D, 1, this.format, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.image, 0);
  }

  draw({ splats, count }, background) {
    const { gl, canvas } = this;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.useProgram(this.program);
    gl.uniform2f(this.size, canvas.width, canvas.height);
    gl.bufferData(gl.ARRAY_BUFFER, splats, gl.STREAM_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.disable(gl.BLEND);
    gl.useProgram(this.screenProgram);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }
}
