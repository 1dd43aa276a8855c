#if canImport(CoreVideo)
import CoreVideo
import LightningPruneLogic

extension ColorImage {
  /// The pixels of a camera's picture, `kCVPixelFormatType_32BGRA`, that `rotation` degrees clockwise turn upright.
  public init(_ pixelBuffer: CVPixelBuffer, rotation: Int = 0) throws {
    guard CVPixelBufferGetPixelFormatType(pixelBuffer) == kCVPixelFormatType_32BGRA else {
      throw ModelError("the camera's pictures are not in 32BGRA: set that in the output's videoSettings")
    }
    CVPixelBufferLockBaseAddress(pixelBuffer, .readOnly)
    defer { CVPixelBufferUnlockBaseAddress(pixelBuffer, .readOnly) }
    let height = CVPixelBufferGetHeight(pixelBuffer), width = CVPixelBufferGetWidth(pixelBuffer)
    guard let base = CVPixelBufferGetBaseAddress(pixelBuffer) else { throw ModelError("the picture has no memory") }
    var pixels: [UInt32] = []
    pixels.reserveCapacity(height * width)
    for y in 0..<height {
      // rows may be longer than the picture is wide; the bytes B, G, R, A are 0xAARRGGBB on these processors
      let row = base.advanced(by: y * CVPixelBufferGetBytesPerRow(pixelBuffer)).assumingMemoryBound(to: UInt32.self)
      pixels.append(contentsOf: UnsafeBufferPointer(start: row, count: width))
    }
    try self.init(height: height, width: width, pixels: pixels, rotation: rotation)
  }
}
#endif
