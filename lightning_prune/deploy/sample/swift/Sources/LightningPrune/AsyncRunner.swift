#if canImport(CoreVideo)
import CoreVideo
#endif
import Foundation
import LightningPruneLogic

/// A `ProgramRunner` for screens: an actor, which loads and runs away from the main thread, one call after the other.
///
/// The program is loaded at the first call. Each call throws what `ProgramRunner` throws, `ModelError`.
public actor AsyncRunner {
  private let load: @Sendable () throws -> ProgramRunner
  private var runner: ProgramRunner?

  /// - Parameter load: by default the first program of the package that this device can run.
  public init(_ load: @escaping @Sendable () throws -> ProgramRunner = { try ProgramRunner.load() }) {
    self.load = load
  }

  /// Does `work` with the runner.
  public func ask<T: Sendable>(_ work: @Sendable (ProgramRunner) throws -> T) throws -> T {
    let runner = try self.runner ?? load()
    self.runner = runner
    return try work(runner)
  }

  public func classify(_ image: GrayImage) throws -> Classified {
    try ask { try $0.classify(image) }
  }

  public func classify(_ image: ColorImage) throws -> Classified {
    try ask { try $0.classify(image) }
  }

  public func read(_ image: ColorImage) throws -> Read {
    try ask { try $0.read(image) }
  }

  #if canImport(CoreVideo)
  /// The class of a camera's picture in 32BGRA, whose pixels are taken before this returns to the camera.
  public nonisolated func classify(_ pixelBuffer: CVPixelBuffer, rotation: Int = 0) async throws -> Classified {
    try await classify(ColorImage(pixelBuffer, rotation: rotation))
  }
  #endif
}
