#if canImport(CoreVideo)
import CoreVideo
#endif
import ExecuTorch
import Foundation
import LightningPruneLogic

/// The class of a picture, and the milliseconds that the run took.
public typealias Classified = (answer: Answer, milliseconds: Double)

/// What the program says of a picture, and the milliseconds that the run took.
public typealias Read = (reading: Reading, milliseconds: Double)

/// A program that was checked against its manifest, ready to run. Not for several threads at once.
public final class ProgramRunner {
  public let manifest: Manifest
  private let url: URL
  private let module: Module

  /// The first of these programs in a bundle that this device can run, by default among the ones packed with this code.
  public static func load(from bundle: Foundation.Bundle = .lightningPrune, names: [String] = ["model", "fallback"]) throws
    -> ProgramRunner
  {
    var reasons: [String] = []
    for name in names {
      guard
        let manifest = bundle.url(forResource: name, withExtension: "json", subdirectory: "Resources")
          ?? bundle.url(forResource: name, withExtension: "json")
      else { continue }
      do {
        return try ProgramRunner(manifest: manifest)
      } catch {
        reasons.append(error.localizedDescription)
      }
    }
    let missing = "no \(names.joined(separator: ".json or ")).json in the app: add it and its .pte to the target"
    throw ModelError(reasons.isEmpty ? missing : reasons.joined(separator: "; "))
  }

  /// Checks the manifest and every file that it names, which stand beside it, then loads the program.
  public init(manifest url: URL) throws {
    self.url = url
    manifest = try Manifest(Data(contentsOf: url))
    let folder = url.deletingLastPathComponent()
    let program = folder.appendingPathComponent(manifest.program.name)
    let data = manifest.data.map { folder.appendingPathComponent($0.name) }
    for (entry, file) in zip([manifest.program] + manifest.data, [program] + data) {
      try ProgramRunner.check(entry, file)
    }
    module = Module(filePath: program.path, dataFilePaths: data.map(\.path), loadMode: .mmap)
    do {
      for method in manifest.methods.keys.sorted() { try module.load(method) }
    } catch {
      throw ModelError("\(manifest.program.name) cannot be loaded: \(error.localizedDescription)")
    }
  }

  /// Runs a method on one value array per input, in the order of the manifest, and returns the outputs as float32.
  ///
  /// - Parameters:
  ///   - inputs: values of each input; whole numbers 0…255 where the program takes uint8.
  ///   - shapes: their shapes; left out, those of the manifest.
  public func run(_ inputs: [[Float]], shapes: [[Int]]? = nil, method name: String = "forward") throws -> [[Float]] {
    let method = try manifest.method(name)
    guard inputs.count == method.inputs.count else {
      throw ModelError("\(name) takes \(method.inputs.count) inputs, got \(inputs.count)")
    }
    let given = try method.inputs.indices.map { i in
      try ProgramRunner.value(method.inputs[i], inputs[i], shapes?[i] ?? method.inputs[i].shape)
    }
    let outputs: [Value]
    do {
      outputs = try module.execute(name, given)
    } catch {
      throw ModelError("the program cannot be run: \(error.localizedDescription)")
    }
    return try outputs.map { output in
      guard let tensor: Tensor<Float> = output.tensor() else { throw ModelError("an output is no float32 tensor") }
      return tensor.scalars()
    }
  }

  /// Calls in a row, from the first state: what the program gives for the next call goes into it.
  ///
  /// What it keeps in itself lies where it was loaded: such a session loads it for itself.
  public func session(method name: String = "forward") throws -> Session {
    let keeps = manifest.state.filter { $0.methods.contains(name) }.map(\.name)
    let url = self.url
    var own = try keeps.isEmpty ? self : ProgramRunner(manifest: url)
    let restart = { if !keeps.isEmpty { own = try ProgramRunner(manifest: url) } }
    return try Session(manifest.method(name), keeps: keeps, restart: restart) { inputs, shapes in
      try own.run(inputs, shapes: shapes, method: name)
    }
  }

  /// The class of a gray picture, and the milliseconds that the run took.
  public func classify(_ image: GrayImage) throws -> Classified {
    try classified { $0.values(image) }
  }

  /// The class of a colour picture, which is turned, resized, fitted and normalised as the manifest says.
  public func classify(_ image: ColorImage) throws -> Classified {
    try classified { $0.values(image) }
  }

  #if canImport(CoreVideo)
  /// The class of a camera's picture in 32BGRA that `rotation` degrees clockwise (0, 90, 180, 270) turn upright.
  public func classify(_ pixelBuffer: CVPixelBuffer, rotation: Int = 0) throws -> Classified {
    try classify(ColorImage(pixelBuffer, rotation: rotation))
  }
  #endif

  /// What the program says of a colour picture: its class, boxes or regions, whatever the first output tells.
  public func read(_ image: ColorImage) throws -> Read {
    let input = try imageInput()
    let (output, milliseconds) = try timed(input, input.values(image))
    let reading = try Reading(
      output: output, spec: manifest.method("forward").outputs[0], labels: manifest.labels,
      place: input.placement(image), rows: input.height, columns: input.width)
    return (reading, milliseconds)
  }

  private func classified(_ values: (ImageInput) -> [Float]) throws -> Classified {
    let input = try imageInput()
    let (output, milliseconds) = try timed(input, values(input))
    let spec = try manifest.method("forward").outputs[0]
    return (try Answer(output: output, spec: spec, labels: manifest.labels), milliseconds)
  }

  private func imageInput() throws -> ImageInput {
    let method = try manifest.method("forward")
    guard method.inputs.count == 1, !method.outputs.isEmpty else {
      throw ModelError("forward takes \(method.inputs.count) inputs: this screen needs one image")
    }
    return try ImageInput(method.inputs[0], manifest.picture)
  }

  private func timed(_ input: ImageInput, _ values: [Float]) throws -> ([Float], Double) {
    let start = DispatchTime.now().uptimeNanoseconds
    let outputs = try run([values], shapes: [input.shape])
    let milliseconds = Double(DispatchTime.now().uptimeNanoseconds - start) / 1e6
    guard let output = outputs.first else { throw ModelError("the program gave nothing") }
    return (output, milliseconds)
  }

  /// Times `forward` on inputs of zeros.
  public func benchmark(rounds: Int = 50) throws -> Timing {
    let specs = try manifest.method("forward").inputs
    let zeros = specs.map { [Float](repeating: 0, count: $0.shape.reduce(1, *)) }
    return try Timing.measure(rounds: rounds) { _ = try run(zeros) }
  }

  static func check(_ entry: FileEntry, _ file: URL) throws {
    guard let handle = try? FileHandle(forReadingFrom: file) else {
      throw ModelError("\(entry.name) is not in the app: add it to the target, beside its manifest")
    }
    defer { try? handle.close() }
    try entry.check { try handle.read(upToCount: 1 << 20) }
  }

  private static func value(_ spec: TensorSpec, _ values: [Float], _ shape: [Int]) throws -> ValueConvertible {
    try spec.check(values.count, shape)
    guard !values.isEmpty else { throw ModelError("input \(spec): got no values") }
    switch spec.dtype {
    case "float32":
      return Tensor<Float>(values, shape: shape)
    case "uint8":
      return Tensor<UInt8>(values.map { UInt8(min(max($0, 0), 255)) }, shape: shape)
    case "int64":
      return Tensor<Int64>(values.map { Int64($0) }, shape: shape)
    default:
      throw ModelError("input \(spec): this runner makes float32, uint8 and int64")
    }
  }
}

extension Foundation.Bundle {
  /// Where the packed model stands: in this package, or in the app.
  public static var lightningPrune: Foundation.Bundle {
    #if MODEL_IN_PACKAGE
    return .module
    #else
    return .main
    #endif
  }
}
